"""Work in whole pieces, dealt to workers of unequal speed (lesson 20)."""

from ...errors import check_whole


def split_by_speed(num_pieces, speeds):
    """Deal equal pieces so that the slowest worker is done as early as can be, and each has at least one.

    Args:
        num_pieces: how many; at least one per worker.
        speeds: pieces per second of each worker, above 0.

    Returns:
        How many pieces each worker gets.

    Raises:
        ValueError: fewer pieces than workers, or a speed that is not above 0.
    """
    check_whole("num_pieces", num_pieces, 1)
    if num_pieces < len(speeds) or not speeds:
        raise ValueError(f"num_pieces={num_pieces}: at least one for each of {len(speeds)} workers is needed")
    for number, speed in enumerate(speeds):
        if not 0 < speed < float("inf"):
            raise ValueError(f"speeds[{number}]={speed!r}: a number above 0 is needed")
    shares = [max(1, int(num_pieces * speed / sum(speeds))) for speed in speeds]
    while sum(shares) > num_pieces:  # the least of one piece has made it too many
        shares[max((n for n in range(len(shares)) if shares[n] > 1), key=lambda n: shares[n] / speeds[n])] -= 1
    while sum(shares) < num_pieces:  # whoever is done first with one more takes it
        shares[min(range(len(shares)), key=lambda n: (shares[n] + 1) / speeds[n])] += 1
    return shares


def slowest_s(shares, speeds):
    """The seconds until all workers are done."""
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))
