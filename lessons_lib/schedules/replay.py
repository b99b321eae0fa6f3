"""The walk through a schedule: play its rounds on values of any kind."""

from ..errors import InvalidSchedule


def replay(rounds, held, add):
    """Play rounds of messages on what the ranks hold, in place, one round each time that the caller asks for the next.

    All messages of a round read what stood at its start. The values can be anything: sets of ranks as bits prove a
    schedule (`verify`) and colour its picture (`show`), plain numbers show what a wrong one computes.

    Args:
        rounds: an iterable of rounds, each a list of `Message`, as `Schedule.rounds`.
        held: held[rank][chunk] is the value that this rank holds of this chunk; changed in place.
        add: a function (mine, theirs) that returns what an "add" message leaves. It may raise `InvalidSchedule` with
            the problem alone: round, rank and chunk are filled in here.

    Yields:
        The number of the round that has just been played.
    """
    for number, messages in enumerate(rounds):
        taken = [held[message.src][message.chunk] for message in messages]
        for (_, dst, chunk, op), theirs in zip(messages, taken, strict=True):
            try:
                held[dst][chunk] = add(held[dst][chunk], theirs) if op == "add" else theirs
            except InvalidSchedule as error:
                raise InvalidSchedule(error.problem, number, dst, chunk) from None
        yield number
