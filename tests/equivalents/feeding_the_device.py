"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "deal": {
        "before {+= → = before +} count": "a whole number is the same, added to in place or anew",
    },
    "prefetch": {
        f"threading.Thread(target=load{diff}).start()": "the thread ends by itself; only a program that ends while the "
        "generator is open would have to wait for it, and a check cannot end the program"
        for diff in (", daemon={True → False}", "{, daemon=True → }")
    },
}
