"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "sharded_adam": {
        "own -= lr * corrected_m / (corrected_v.{sqrt → sqrt_}() + 1e-8)": "corrected_v is not used again",
        "own {-= lr * corrected_m / (corrected_v.sqrt() + 1e-8 → = own - lr * corrected_m / (corrected_v.sqrt() + "
        "1e-08})": "the gather puts this rank's own chunk into w too",
    },
    "clip_shards": {
        "squares = gradients[{0 → -1}].new_zeros(())": "all pieces have one dtype",
        "squares {+= → = squares +} gradient.square().sum()": "a new number in the place of the old one",
        "norm = squares.{sqrt → sqrt_}()": "squares is not used again",
        "if norm {> → >=} max_norm:": "where they are equal, the factor is 1",
    },
}
