"""Ranks joined by `torch.distributed`: gloo or NCCL, any number of machines.

Before its data, every message says in a header what its sender is doing, so that ranks that disagree find out. Large
tensors are cut into segments: while one is added, the next is on its way.
"""

import zlib
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import CollectiveMismatch, RankFailed
from .trace import now_s
from .transport import Transport, describe

ReduceOp = dist.ReduceOp
TORCH_OPS = {"sum": ReduceOp.SUM, "mean": ReduceOp.SUM, "max": ReduceOp.MAX, "min": ReduceOp.MIN}
HEADER_BYTES = 256
MESSAGE_BYTES = 4 << 20


class TorchTransport(Transport):
    """Messages over the process group `group` (the default one if None), which `close` ends if `own_group`."""

    def __init__(self, timeout_s, links=None, group=None, own_group=False):
        super().__init__(dist.get_rank(group), dist.get_world_size(group), links)
        self.group, self._own_group = group, own_group
        self.segment_bytes = self.world_size * MESSAGE_BYTES
        has_cpu = "cpu:" in dist.get_backend_config(group)
        self._header_device = "cpu" if has_cpu else torch.accelerator.current_accelerator()
        self.set_timeout(timeout_s)
        self._doing, self._scratch = "its own code", {}

    def set_timeout(self, timeout_s):
        self._timeout = timedelta(seconds=timeout_s)

    # --- waiting and headers -----------------------------------------------------------------------------------------

    def wait(self, work, peer):
        """Wait for a send or receive to end, at most timeout_s; `RankFailed` names the peer."""
        try:
            work.wait(self._timeout)
        except RuntimeError as error:
            if "Invalid scalar type" in str(error):
                raise TypeError(f"{self._doing}: gloo cannot do that with this dtype, own algorithms can") from error
            raise self._failed(peer, error) from error

    def _failed(self, peer, error):
        reason = (
            f"{'a rank' if peer is None else f'rank {peer}'} did not answer within "
            f"timeout_s={self._timeout.total_seconds():g} s, or its connection broke: rank {self.rank} was waiting "
            f"for it in {self._doing} ({str(error).splitlines()[0].rpartition('] ')[2]})"
        )
        return RankFailed(peer, reason)

    def global_rank(self, rank):
        return dist.get_global_rank(self.group, rank) if self.group is not None else rank

    def post(self, function, tensor, peer, tag=0):
        """Begin a `dist.isend` or `dist.irecv`; its work."""
        try:
            return function(tensor, self.global_rank(peer), self.group, tag)
        except RuntimeError as error:
            raise self._failed(peer, error) from error

    def send_header(self, call, dst):
        data = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        text = call.encode()
        data[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        data = data.to(self._header_device)
        return self.post(dist.isend, data, dst), data

    def expect_header(self, src):
        data = torch.empty(HEADER_BYTES, dtype=torch.uint8, device=self._header_device)
        return self.post(dist.irecv, data, src), data

    def check_header(self, call, src, header, expected):
        """Compare what rank `src` says it is doing, in `header`, with `expected`."""
        self._doing = call
        work, data = header
        self.wait(work, src)
        theirs = bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")
        if theirs != expected:
            raise CollectiveMismatch({self.rank: call, src: theirs})

    def agree(self, call, note=""):
        Greeting(self, call, [rank for rank in range(self.world_size) if rank != self.rank]).end()
        self.idle()
        return [note] * self.world_size

    def idle(self):
        """Say, to errors, that this rank is back in its own code."""
        self._doing = "its own code"

    # --- messages ----------------------------------------------------------------------------------------------------

    def send(self, tensor, dst):
        kind = describe(tensor)
        self._doing = f"send({kind}, dst={dst})"
        header = self.send_header(f"send({kind}, dst={dst})", dst)
        self.wait(self.post(dist.isend, tensor, dst), dst)
        self.wait(header[0], dst)
        self.idle()

    def recv(self, tensor, src):
        kind = describe(tensor)
        call = f"recv({kind}, src={src})"
        self.check_header(call, src, self.expect_header(src), expected=f"send({kind}, dst={self.rank})")
        heard_s = now_s()
        self.wait(self.post(dist.irecv, tensor, src), src)
        if self.wire:
            self.wire.hold(src, tensor.nbytes, tensor.nbytes, now_s())
        self.idle()
        return heard_s

    def start(self, operations):
        """Post (function, tensor, peer, tag) together; a work each. NCCL needs them in one group, or it deadlocks."""
        if all(tensor.is_cpu for _, tensor, _, _ in operations):
            return [self.post(*operation) for operation in operations]
        batch = [
            dist.P2POp(function, tensor, self.global_rank(peer), self.group, tag)
            for function, tensor, peer, tag in operations
        ]
        works = dist.batch_isend_irecv(batch)
        return works if len(works) == len(batch) else works * len(batch)

    def scratch(self, numel, like):
        """A 1-D tensor of at least `numel` elements that outlives the call, so that its pages are touched once."""
        key = (like.dtype, like.device)
        if key not in self._scratch or self._scratch[key].numel() < numel:
            self._scratch[key] = like.new_empty(numel)
        return self._scratch[key]

    # --- schedules ---------------------------------------------------------------------------------------------------

    def buffer(self, numel, dtype):
        self.agree(f"buffer({numel}, {dtype})")
        return torch.zeros(numel, dtype=dtype)

    def window(self, call, plan, flat, reduce):
        return Window(self, call, plan, flat, reduce)

    # --- whole collectives, left to torch ----------------------------------------------------------------------------

    def all_reduce(self, call, flat, op):
        self._whole(call, dist.all_reduce, flat, TORCH_OPS[op])

    def broadcast(self, call, flat, src):
        self._whole(call, dist.broadcast, flat, self.global_rank(src))

    def _whole(self, call, collective, *args):
        self.agree(call)
        self._doing = call
        self.wait(collective(*args, self.group, async_op=True), None)
        self.idle()

    def close(self):
        if self._own_group:
            dist.destroy_process_group()


class Greeting:
    """Tells `peers` what this rank is about to do, and hears the same from them: it may be checked later."""

    def __init__(self, transport, call, peers):
        self._transport, self._call = transport, call
        self._told = [(*transport.send_header(call, rank), rank) for rank in peers]
        self._heard = {rank: transport.expect_header(rank) for rank in peers}

    def check(self, peer):
        """Raise `CollectiveMismatch` if rank `peer` is in another call."""
        if peer in self._heard:
            self._transport.check_header(self._call, peer, self._heard.pop(peer), self._call)

    def end(self):
        """Check whoever has not been yet."""
        for peer in list(self._heard):
            self.check(peer)
        for work, _, peer in self._told:
            self._transport.wait(work, peer)
        self._told = []


class Window:
    """One rank's `plan` on a tensor. While what has come is added, messages of later steps are on their way.

    The tag of a message says which step of which call it belongs to. So it may leave as soon as what it carries is
    there, and what a rank sends that is in another call is never taken for something else.
    """

    def __init__(self, transport, call, plan, flat, reduce):
        self._transport, self._plan, self._flat, self._reduce = transport, plan, flat, reduce
        self._greeting, self._first_tag = Greeting(transport, call, plan.peers), 1 + zlib.crc32(call.encode()) % 2**30
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
        self._posted_s = now_s()
        for work, (number, *arrival) in zip(works, coming, strict=False):
            self._arrivals[number].append((work, *arrival))
        sends = zip(works[len(coming) :], going, strict=True)
        self._leaving += [(work, peer, number) for work, (number, peer, _) in sends]

    def _next_to_send(self, soon, num_ended):
        """(step number, to whom, what) of all that is ready to leave and has not left yet."""
        ready = [(step.number, part) for step in soon for part in step.outgoing if part.ready <= num_ended]
        ready = [(number, part) for number, part in ready if id(part) not in self._sent]
        self._sent.update(id(part) for _, part in ready)
        return [(number, part.peer, piece) for number, part in ready for piece in self._pieces(part)]

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
                for target in self._pieces(part):
                    landing = target
                    if part.op == "add":
                        landing = self._scratch[used : used + target.numel()]
                        used += target.numel()
                    found.append((step.number, part, target, landing))
        return found

    def _pieces(self, part):
        return [self._flat[start:stop] for start, stop in part.slices]

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
        wait_s = ready_s = now_s()
        if transport.wire or transport.trace is not None:
            was_there = all(work.is_completed() for work, *_ in mine)
            for work, *_ in mine:
                transport.wait(work, part.peer)
            ready_s = self._posted_s if was_there else now_s()
        if transport.wire:
            transport.wire.hold(part.peer, size, part.queued_numel * self._flat.element_size(), ready_s)
        start_s = now_s()
        for work, target, landing in mine:
            if not (transport.wire or transport.trace is not None):
                transport.wait(work, part.peer)
            if part.op == "add":
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
