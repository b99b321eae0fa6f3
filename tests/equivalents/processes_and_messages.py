"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

EITHER_PARITY = "of neighbours one still sends while the other receives, and it takes as many message times"

equivalent = {
    "shift": {
        "if comm.rank % 2 == {0 → 1}:": EITHER_PARITY,
        "if comm.rank % 2 {== → !=} 0:": EITHER_PARITY,
    },
    "tree_rounds": {"have {*= → = have *} 2": "a number is never changed in place"},
    "scatter": {
        "…mel // comm.world_size for rank in range(comm.world_size + {1 → 2})]": "nobody looks at the last of the cuts",
        "comm.recv(chunk{, src=0 → })": "only rank 0 sends, so whoever comes first is rank 0",
    },
}
