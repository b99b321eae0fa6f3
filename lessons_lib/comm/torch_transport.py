"""Ranks joined by `torch.distributed`: gloo or NCCL, any number of machines.

Before its data, every message says in a header what its sender is doing, so that ranks that disagree find out.
"""

from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import CollectiveMismatch, RankFailed
from ..trace import now_s
from .call import Call
from .torch_group import new_group
from .torch_mail import TorchMail
from .torch_window import TorchWindow
from .torch_work import TorchWork
from .transport import GroupWire, Transport

ReduceOp = dist.ReduceOp
TORCH_OPS = {
    "sum": ReduceOp.SUM,
    "mean": ReduceOp.SUM,
    "product": ReduceOp.PRODUCT,
    "max": ReduceOp.MAX,
    "min": ReduceOp.MIN,
}
HEADER_BYTES = 256  # holds any call: a name, a tensor and a schedule, of which `brief` leaves 100 bytes each
DATA_TAG = 2**30 + 1  # of what `send` sends; headers have tag 0, and those between belong to collectives
# Of these torch reduces any, and comes to what our own schedules come to; its max and min lose a nan.
WHOLE_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)
WHOLE_OPS = (None, "sum", "mean", "product")
# Below this, a round trip to agree before torch's collective costs more than its better algorithm saves.
WHOLE_BYTES = 256 << 10
MESSAGE_BYTES = 4 << 20  # while a piece of this size is added up, the next one comes


class TorchTransport(Transport):
    """Messages over the process group `group` (the default one if None), which `close` ends if `own_group`."""

    has_own_collectives = waits_on_wire = True

    def __init__(self, timeout_s, links=None, group=None, own_group=False):
        super().__init__(dist.get_rank(group), dist.get_world_size(group), links)
        self.group, self._own_group = group, own_group
        self.segment_bytes = self.world_size * MESSAGE_BYTES
        has_cpu = "cpu:" in dist.get_backend_config(group)
        self._header_device = "cpu" if has_cpu else torch.accelerator.current_accelerator()
        self.set_timeout(timeout_s)
        self._doing, self._scratch, self._groups = "its own code", {}, []
        self._asked, self._mail, self._mismatch = {}, TorchMail(self), None

    def set_timeout(self, timeout_s):
        self._timeout, self.timeout_s = timedelta(seconds=timeout_s), timeout_s

    # --- waiting and headers -----------------------------------------------------------------------------------------

    def wait(self, work, peer):
        """Wait for a send or receive to end, at most timeout_s; `RankFailed` names the peer."""
        try:
            work.wait(self._timeout)
        except RuntimeError as error:
            if "Invalid scalar type" in str(error):
                raise TypeError(f"{self._doing}: gloo cannot do that with this dtype, own algorithms can") from error
            raise self.failed(peer, error) from error

    def failed(self, peer, error, call=None):
        """The `RankFailed` of a wait for rank `peer`, or for anybody, in `call`, or in what this rank is doing."""
        reason = (
            f"{'a rank' if peer is None else f'rank {peer}'} did not answer within "
            f"timeout_s={self._timeout.total_seconds():g} s, or its connection broke: rank {self.rank} was waiting "
            f"for it in {call or self._doing} ({str(error).splitlines()[0].rpartition('] ')[2]})"
        )
        return RankFailed(peer, reason)

    def global_rank(self, rank):
        return dist.get_global_rank(self.group, rank) if self.group is not None else rank

    def post(self, function, tensor, peer, tag=0):
        """Begin a `dist.isend` or `dist.irecv`; its work."""
        try:
            return function(tensor, self.global_rank(peer), self.group, tag)
        except RuntimeError as error:
            raise self.failed(peer, error) from error

    def send_header(self, call, dst):
        data = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        text = call.encode()
        data[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        data = data.to(self._header_device)
        return self.post(dist.isend, data, dst), data

    def expect_header(self, src):
        if src in self._asked:
            return self._asked.pop(src)
        data = torch.zeros(HEADER_BYTES, dtype=torch.uint8, device=self._header_device)
        return self.post(dist.irecv, data, src), data

    def heard_so_far(self, src):
        """The next header of rank `src`, as much of it as has come; it is there for whoever expects it next."""
        if src not in self._asked:
            self._asked[src] = self.expect_header(src)
        return bytes(self._asked[src][1].tolist()).rstrip(b"\0").decode(errors="replace")

    def check_header(self, call, src, header, expected):
        """Compare what rank `src` says it is doing, in `header`, with `expected`."""
        self._doing = call
        work, data = header
        self.wait(work, src)
        theirs = bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")
        if theirs != expected:
            self.disagree({self.rank: call, src: theirs})

    def disagree(self, calls):
        """Raise the `CollectiveMismatch` of `calls`, and again whenever this rank begins something else.

        What has left cannot be called back, and the others would take it for a part of what comes next.
        """
        self._mismatch = CollectiveMismatch(calls)
        raise self._mismatch

    def check_in_step(self):
        """Raise if ranks have disagreed before."""
        if self._mismatch is not None:
            raise self._mismatch

    def agree(self, call, note=""):
        Greeting(self, str(call), [rank for rank in range(self.world_size) if rank != self.rank]).end()
        self.idle()
        return [note] * self.world_size

    def settle(self, ranks):
        """Wait for the receives from `ranks` that were begun: what a rank hears from another comes in order."""
        self._mail.settle(ranks)

    def idle(self):
        """Say, to errors, that this rank is back in its own code."""
        self._doing = "its own code"

    # --- messages ----------------------------------------------------------------------------------------------------

    def post_message(self, tensor, dst):
        """Let a message leave: its header, then the tensor. What `wait_all` waits for."""
        self.check_in_step()
        self._doing = str(Call("send", tensor, f"dst={dst}"))
        return self.send_header(self._doing, dst), (self.post(dist.isend, tensor, dst, DATA_TAG), tensor)

    def wait_all(self, works, peer):
        for work, _ in works:
            self.wait(work, peer)

    def send(self, tensor, dst):
        self.wait_all(self.post_message(tensor, dst), dst)
        self.idle()

    def recv(self, tensor, src):
        self._mail.settle([src])
        ready_s = self.take_message(tensor, src)
        self.idle()
        return ready_s

    def take_message(self, tensor, src):
        """Wait for the next message from rank `src`, which must be `tensor`'s; when that rank was ready to send (s)."""
        self.check_in_step()
        call, expected = Call("recv", tensor, f"src={src}"), Call("send", tensor, f"dst={self.rank}")
        self.check_header(str(call), src, self.expect_header(src), str(expected))
        heard_s = now_s()
        self.wait(self.post(dist.irecv, tensor, src, DATA_TAG), src)
        if self.wire:
            self.wire.hold(src, tensor.nbytes, tensor.nbytes, now_s())
        return heard_s

    def isend(self, tensor, dst):
        return self._mail.start_send(tensor, dst)

    def irecv(self, tensor, src):
        return self._mail.start_recv(tensor, src)

    def wait_for(self, message):
        return message.result()

    def is_done(self, message):
        return message.done()

    def first_sender(self, tensor):
        return self._mail.first_sender(tensor)

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

    @torch.inference_mode(False)  # it outlives a call within that mode
    def scratch(self, numel, like):
        """A 1-D tensor of at least `numel` elements that outlives the call, so that its pages are touched once."""
        key = (like.dtype, like.device)
        if key not in self._scratch or self._scratch[key].numel() < numel:
            self._scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
        return self._scratch[key]

    # --- schedules ---------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    def buffer(self, numel, dtype):
        self.agree(Call("buffer", None, numel, dtype))
        return torch.zeros(numel, dtype=dtype)

    def window(self, call, plan, flat, reduce, source=None):
        return TorchWindow(self, Greeting(self, str(call), plan.peers), plan, flat, reduce, source)

    # --- whole collectives, left to torch ----------------------------------------------------------------------------

    def is_better_at(self, tensor, op, is_agreed):
        if self.wire or self.trace is not None or tensor.dtype not in WHOLE_DTYPES or op not in WHOLE_OPS:
            return False
        return is_agreed or tensor.nbytes >= WHOLE_BYTES

    def begin_all_reduce(self, call, flat, op):
        self.check_in_step()
        return TorchWork(self, call, dist.all_reduce(flat, TORCH_OPS[op], self.group, async_op=True))

    def all_reduce(self, call, flat, op):
        self._whole(call, dist.all_reduce, flat, TORCH_OPS[op])

    def broadcast(self, call, flat, src):
        self._whole(call, dist.broadcast, flat, self.global_rank(src))

    def _whole(self, call, collective, *args):
        self.agree(call)
        self._doing = str(call)
        self.wait(collective(*args, self.group, async_op=True), None)
        self.idle()

    def make_group(self, members):
        self.agree("making groups")
        if not members:
            return None
        ranks = [self.global_rank(rank) for rank in members]
        made = TorchTransport(self._timeout.total_seconds(), None, new_group(ranks, self._timeout), own_group=True)
        made.wire = GroupWire(self.wire, members) if self.wire else None
        self._groups.append(made)
        return made

    def close(self):
        self._mail.close()
        for group in self._groups:
            group.close()
        if self._own_group:
            dist.destroy_process_group(self.group)
        self._own_group, self._groups = False, []


class Greeting:
    """Tells `peers` what this rank is about to do, and hears the same from them: it may be checked later."""

    def __init__(self, transport, call, peers):
        self._transport, self.call = transport, call
        transport.check_in_step()
        transport.settle(peers)
        self._told = [(*transport.send_header(call, rank), rank) for rank in peers]
        self._heard = {rank: transport.expect_header(rank) for rank in peers}

    def check(self, peer):
        """Raise `CollectiveMismatch` if rank `peer` is in another call."""
        if peer in self._heard:
            transport, start_s = self._transport, now_s()
            transport.check_header(self.call, peer, self._heard.pop(peer), self.call)
            if transport.trace is not None:
                transport.trace.came_late(transport.rank, peer, start_s, self.call)

    def end(self):
        """Check whoever has not been yet."""
        for peer in list(self._heard):
            self.check(peer)
        for work, _, peer in self._told:
            self._transport.wait(work, peer)
        self._told = []
