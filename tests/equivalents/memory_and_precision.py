"""Mutants of the references that compute the same, and why: see tests/mutants.py."""

equivalent = {
    "accumulate": {
        "mean {= mean + → +=} loss.item()": "a float is the same, added to in place or anew",
    },
    "checkpoint": {
        "with torch.enable_grad(), torch.random.fork_rng({devices=[] → }):": "without a list the random numbers of "
        "accelerators are kept too, and the block runs on the CPU",
    },
}
