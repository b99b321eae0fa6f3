"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

OWN = "the tensor is the function's own, and nothing else looks at it"

equivalent = {
    "clip_per_sample": {
        "factors = (max_norm / squares.{sqrt → sqrt_}()).clamp(max=1.0)": OWN,
    },
    "epsilon_of": {
        "a {+= weight * math.exp((k * k - k) / (2 * noise_multiplier** → = a + weight * math.exp((k * k - k) / (2 * "
        "noise_multiplier ** }2))": "a number is never changed in place",
    },
    "masks_that_cancel": {
        "if number {< → <=} other:": "no client has a mask with itself",
        "total {+= → = total +} mask": OWN,
        "total {-= → = total -} mask": OWN,
    },
}
