"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

NOT_IN_PLACE = "a number is never changed in place"
CONSTANT = "all orders take that much longer, or shorter"

equivalent = {
    "bytes_per_axis": {
        "own_blocks = num_layers {/ → //} pp": "a whole number, the task says",
        "gradients = 12 * width{**2 * own_blocks / →  ** 2 * own_blocks //} tp * itemsize": "each has an equal part",
    },
    "clip_over_mesh": {
        "total {+= → = total +} gradient.double().square().sum() / copies": "nobody else holds `total` yet",
        "norm = total.{sqrt → sqrt_}().item()": "`total` is not used again",
    },
    "place_axes": {
        "total_s, span = {0.0 → -1.0}, 1": CONSTANT,
        "total_s, span = {0.0 → 1.0}, 1": CONSTANT,
        "span {*= → = span *} sizes[axis]": NOT_IN_PLACE,
        "total_s {+= num_messages * links.latency_s + size_bytes / links.bandwidth_Bps → = total_s + (num_messages * "
        "links.latency_s + size_bytes / links.bandwidth_Bps)}": NOT_IN_PLACE,
    },
}
