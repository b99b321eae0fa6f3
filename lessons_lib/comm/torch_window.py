"""One collective over `torch.distributed`: its messages leave and land as soon as they can, several steps ahead."""

import zlib

import torch.distributed as dist

from ..trace import now_s


class TorchWindow:
    """One rank's `plan` on a tensor. While what has come is added, messages of later steps are on their way.

    The tag of a message says which step of which call it belongs to. So it may leave as soon as what it carries is
    there, and what a rank sends that is in another call is never taken for something else.
    """

    def __init__(self, transport, greeting, plan, flat, reduce, source=None):
        self._transport, self._greeting, self._plan = transport, greeting, plan
        self._flat, self._reduce, self._source = flat, reduce, flat if source is None else source
        self._first_tag = 1 + zlib.crc32(greeting.call.encode()) % 2**30
        looks_ahead = flat.is_cpu and not transport.wire and transport.trace is None
        if not looks_ahead:
            self._greeting.end()
        self._num_ahead = plan.num_rounds if looks_ahead else 0
        self._room = max((_added(step) for step in plan.steps), default=0)
        self._scratch = transport.scratch((self._num_ahead + 1) * self._room, flat) if self._room else None
        self._arrivals, self._leaving, self._sent, self._num_expected = {}, [], set(), 0

    def post(self, step):
        """Begin what comes and goes in this step, and in the steps soon after it as far as that can be."""
        soon = self._plan.steps[step.number : step.number + self._num_ahead + 1]
        coming, going = self._next_landings(soon, step.number), self._next_to_send(soon, step.number)
        works = self._transport.start(
            [(dist.irecv, landing, part.peer, self._first_tag + number) for number, part, _, landing in coming]
            + [(dist.isend, piece, peer, self._first_tag + number) for number, peer, piece in going]
        )
        for work, (number, *arrival) in zip(works, coming, strict=False):
            self._arrivals[number].append((work, *arrival))
        sends = zip(works[len(coming) :], going, strict=True)
        self._leaving += [(work, peer, number) for work, (number, peer, _) in sends]

    def _next_to_send(self, soon, num_ended):
        """(step number, to whom, what) of all that is ready to leave and has not left yet."""
        ready = [(step.number, part) for step in soon for part in step.outgoing if part.ready <= num_ended]
        ready = [(number, part) for number, part in ready if part not in self._sent]
        self._sent.update(part for _, part in ready)
        return [(number, part.peer, piece) for number, part in ready for piece in _pieces(self._source, part)]

    def _next_landings(self, soon, num_ended):
        """(step number, part, where it goes, where it lands) of what may come now: nothing still needs that memory.

        What is to be added lands in scratch first.
        """
        found = []
        for step in soon[self._num_expected - num_ended :]:
            if max(step.written, *step.readers.values(), 0) > num_ended:
                break
            self._wait_until_read(step.readers)
            self._num_expected, self._arrivals[step.number] = step.number + 1, []
            used = self._room * (step.number % (self._num_ahead + 1))
            for part in step.incoming:
                for target in _pieces(self._flat, part):
                    landing = target
                    if part.op == "add":
                        landing = self._scratch[used : used + target.numel()]
                        used += target.numel()
                    found.append((step.number, part, target, landing))
        return found

    def _wait_until_read(self, readers):
        """Wait for what was sent to each reader before it ended so many steps."""
        still = []
        for work, peer, number in self._leaving:
            if number < readers.get(peer, 0):
                self._transport.wait(work, peer)
            else:
                still.append((work, peer, number))
        self._leaving = still

    def take(self, part, step):
        transport, size = self._transport, part.numel * self._flat.element_size()
        self._greeting.check(part.peer)
        arrivals = self._arrivals[step.number]
        mine = [(work, target, landing) for work, other, target, landing in arrivals if other is part]
        wait_s = now_s()
        for work, _, _ in mine:
            transport.wait(work, part.peer)
        ready_s = now_s()
        if transport.wire:
            transport.wire.hold(part.peer, size, part.queued_numel * self._flat.element_size(), ready_s)
        start_s = now_s()
        if part.op == "add":
            for _, target, landing in mine:
                self._reduce(target, landing)
        if transport.trace is not None:
            transport.trace.message(transport.rank, part, size, wait_s, ready_s, start_s)

    def finish(self, step):
        del self._arrivals[step.number]

    def close(self):
        self._greeting.end()
        for work, peer, _ in self._leaving:
            self._transport.wait(work, peer)
        self._transport.idle()


def _added(step):
    return sum(part.numel for part in step.incoming if part.op == "add")


def _pieces(flat, part):
    return [flat[start:stop] for start, stop in part.slices]
