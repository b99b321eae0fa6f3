"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

ANY_SENDER = "only one rank sends to this one, so whoever comes first is the right one"

equivalent = {
    "around_the_table": {
        "comm.recv(ball{, src=before → })": ANY_SENDER,
        "comm.recv(ball{, src=before → }) (number 2)": ANY_SENDER,
    },
    "exchange": {"if { → not }is_even:": "either of the two may send first"},
}
