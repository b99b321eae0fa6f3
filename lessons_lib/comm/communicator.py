"""What a rank holds: who it is, and the operations it shares with the others."""

from contextlib import nullcontext
from weakref import WeakSet

import torch

from ..errors import CollectiveMismatch, RankFailed
from ..schedules.choose import all_reduce_schedule, broadcast_schedule, check_algorithm
from ..schedules.plan import Plans
from ..schedules.schedule import Schedule
from ..schedules.verify import check_schedule
from ..trace import Ledger, Trace, now_s
from .background import Background
from .call import Call, brief
from .check import check_buffer, check_op, check_others, check_peer, check_tensor
from .deliver import Deliveries
from .dense import copy_back, dense
from .execute import run
from .groups import Groups
from .messages import Messages


class Communicator(Messages, Deliveries, Groups):
    """The operations of `torch.distributed` among the ranks of one launch. `launch` and `connect` make one.

    Args:
        transport: how messages travel.
        algorithm: of `all_reduce` and `broadcast`: a name of `lessons_lib.schedules.choose`, "auto", "torch" (the
            whole collective is left to `torch.distributed`), or a `Schedule`. "auto" takes the cheapest of our own
            schedules in shared memory; over torch it leaves whole collectives to torch where that is faster, unless
            they are traced or links are emulated, which only our own messages can show.
        device: where this rank should keep its tensors.
        trace: whether to record spans.
        ranks: the numbers in the launch of the ranks, where they are not 0 to world_size - 1.
        restart_count: how often this rank has been started again after a failure.

    Attributes:
        rank, world_size, device: this rank's number, how many there are, and its device.
        ranks: the numbers in the launch of all ranks of this group, in order; of a launch, 0 to world_size - 1.
        restart_count: how often this rank has been started again after a failure: 0 at first.
        name: of a group; "" for a launch.
        ledger: `Ledger` of what this rank has moved.
        trace: `Trace` of what it did, or None.
    """

    def __init__(self, transport, algorithm="auto", device="cpu", trace=False, ranks=None, restart_count=0):
        check_algorithm(algorithm)
        if algorithm == "torch" and not transport.has_own_collectives:
            raise ValueError('algorithm="torch" needs transport="torch": torch.distributed is not started otherwise')
        if isinstance(algorithm, Schedule):
            check_schedule(algorithm, transport.world_size)
        self.transport, self.algorithm, self.device = transport, algorithm, torch.device(device)
        self.rank, self.world_size = transport.rank, transport.world_size
        self.ranks, self.name, self.restart_count = ranks or list(range(self.world_size)), "", restart_count
        self.ledger = Ledger()
        self.trace = transport.trace = Trace(source=transport.source) if trace else None
        self._plans, self._background = Plans(self.rank, self.world_size), Background()
        self._groups = WeakSet()  # a group that nobody holds is let go

    @property
    def spent_s(self):
        """How long this rank's own code has been in operations of this communicator so far, waits included (s)."""
        return self._background.spent_s

    def __repr__(self):
        name = f"{self.name!r}, " if self.name else ""
        return f"Communicator({name}rank={self.rank}, world_size={self.world_size}, {type(self.transport).__name__})"

    def __reduce__(self):
        raise TypeError("a Communicator belongs to its own rank and cannot be sent to another process or returned")

    # --- one to one --------------------------------------------------------------------------------------------------

    def send(self, tensor, dst):
        """Give `tensor` to rank `dst`. Returns when it has been taken, so two ranks that both send first wait for ever.

        Raises:
            TypeError, ValueError: not a tensor, no such rank, or the rank itself.
            CollectiveMismatch: the other receives another shape or dtype, or the ranks wait for each other.
        """
        self._check("send", tensor, dst=dst)
        self._meet(self.transport.send, dense(tensor), dst)
        self.ledger.sent(tensor.nbytes)

    def recv(self, tensor, src=None):
        """Fill `tensor` with what rank `src` sends: the same shape and dtype. Raises as `send` does.

        Args:
            tensor: of the shape and dtype that was sent, changed in place.
            src: the rank that sends, or None: whoever comes first.

        Returns:
            The rank that has sent it.
        """
        self._check("recv", tensor, **({} if src is None else {"src": src}))
        target = dense(tensor)
        if src is None:
            check_others("recv", self.world_size)
            src = self._background.alone(self.transport.first_sender, target)
        wait_s, ready_s = self._meet(self.transport.recv, target, src)
        if self.trace is not None:
            self.trace.meeting(self.rank, src, tensor.nbytes, wait_s, ready_s)
        copy_back(tensor, target)
        self.ledger.received(tensor.nbytes)
        return src

    def _meet(self, send_or_recv, tensor, peer):
        """When this rank came, and when the other one had; a wait in vain is recorded, for timelines of deadlocks."""
        start_s = now_s()
        try:
            return start_s, self._background.alone(send_or_recv, tensor, peer)
        except (RankFailed, CollectiveMismatch):
            if self.trace is not None:
                what = "send to" if send_or_recv == self.transport.send else "recv from"
                self.trace.add(self.rank, "wait", start_s, peer, label=f"{what} rank {peer}, in vain")
            raise

    # --- all together ------------------------------------------------------------------------------------------------

    def broadcast(self, tensor, src=0):
        """Copy rank `src`'s `tensor` over everybody's, in place.

        Communication: ceil(log2 N) rounds of one payload along a binomial tree; one round for algorithm="star".
        """
        self._check("broadcast", tensor, src=src)
        call = Call("broadcast", tensor, f"src={src}")
        if self._is_for_torch(tensor):
            self._leave_to_torch(call, self.transport.broadcast, tensor, src)
        else:
            name = self.algorithm if isinstance(self.algorithm, str) else "auto"
            self._run(call, broadcast_schedule(name, self.world_size, src), tensor)

    def all_reduce(self, tensor, op="sum", async_op=False, is_agreed=False):
        """Combine `tensor` over all ranks and leave the result in everybody's, in place.

        Args:
            tensor: any shape and dtype; part of a `buffer` is reduced without a copy.
            op: "sum", "mean", "product", "max" or "min" (nan wins; with algorithm="torch" not always).
            async_op: return at once, with a handle whose `wait()` returns when it is done.
            is_agreed: the ranks know already that they are in the same call, and find out from the data if they are
                not. Where whole collectives are left to torch, they then tell each other nothing before.

        Communication: see the algorithm; 2(N-1)/N of the payload a rank for ring, direct and halving-doubling.
        """
        check_tensor("all_reduce", tensor)
        check_op(op, tensor)
        if is_agreed and op != "mean" and tensor.is_contiguous() and self._is_for_torch(tensor, op, is_agreed):
            self.ledger.call("all_reduce")
            call = Call("all_reduce", tensor, op, "torch")
            work = self._background.begin(self.transport.begin_all_reduce, call, dense(tensor), op)
            return work if async_op else work.wait()
        if async_op:
            return self._background.start(lambda: self._all_reduce(tensor, op, wait=False))
        return self._all_reduce(tensor, op)

    def _all_reduce(self, tensor, op, wait=True):
        self._check("all_reduce", tensor, wait)
        if self._is_for_torch(tensor, op):
            self._leave_to_torch(Call("all_reduce", tensor, op, "torch"), self.transport.all_reduce, tensor, op)
            return
        schedule = self.algorithm
        if isinstance(schedule, str):
            schedule = all_reduce_schedule(schedule, self.world_size, tensor.nbytes)
        self._run(Call("all_reduce", tensor, op, brief(schedule.name)), schedule, tensor, op)

    def run(self, schedule, tensor, op="sum"):
        """Execute any `Schedule` on `tensor`, in place. It is verified first: `InvalidSchedule` if it is wrong."""
        self._check("run", tensor)
        check_op(op, tensor)
        if not isinstance(schedule, Schedule):
            raise TypeError(f"run was given a {type(schedule).__name__}: a Schedule is needed")
        schedule, number = self._plans.checked(schedule)
        self._run(Call("run", tensor, op, f"{brief(schedule.name)} {number:08x}"), schedule, tensor, op)

    def barrier(self):
        """Wait until every rank has come here."""
        self._background.settle()
        self._background.alone(self.transport.agree, Call("barrier"))
        self.ledger.call("barrier")

    # --- memory and time ---------------------------------------------------------------------------------------------

    def buffer(self, numel, dtype=torch.float32):
        """A 1-D tensor of zeros that collectives use in place, without a copy. All ranks ask for it together.

        Its memory goes with the last tensor that looks at it. A rank may drop it before the others do: what these still
        reduce in it is then copied, as any other tensor is.
        """
        check_buffer(numel, dtype, self.world_size)
        self._background.settle()
        return self._background.alone(self.transport.buffer, int(numel), dtype)

    def compute(self, label="compute"):
        """A context that records a compute span under `label` when this launch is traced."""
        return self.trace.span(self.rank, "compute", label) if self.trace is not None else nullcontext()

    def close(self):
        """Wait for the others to end too, then let go of memory and sockets, also of groups. `launch` calls it."""
        if not self._background.is_closed:
            self._settle_all()
            self._background.alone(self.transport.agree, "close()" if self.name else "return from the function")
            self._release()

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if error_type is None:
            self.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _check(self, name, tensor, wait=True, **peers):
        """Check the arguments of operation `name`, wait for what is pending, and count the call."""
        check_tensor(name, tensor)
        for argument, peer in peers.items():
            check_peer(name, argument, peer, self.rank, self.world_size)
        if wait:
            self._background.settle()
        self.ledger.call(name)

    def _is_for_torch(self, tensor, op=None, is_agreed=False):
        """Whether a whole collective on `tensor` is left to torch; all ranks come to the same answer."""
        if self.algorithm == "auto":
            return self.transport.is_better_at(tensor, op, is_agreed)
        return self.algorithm == "torch"

    def _run(self, call, schedule, tensor, op="sum"):
        """Do this rank's part of `schedule` on `tensor`, in place."""
        flat = dense(tensor).view(-1)
        plan = self._plans.of(schedule, flat.numel(), self.transport.num_segments(flat))
        self._background.alone(run, call, plan, flat, self.transport, self.ledger, op)
        self._finish(tensor, flat, op)

    def _leave_to_torch(self, call, collective, tensor, option):
        """Let the transport do the whole `collective` on `tensor`, in place; `option` is its op or its source."""
        flat = dense(tensor).view(-1)
        self._background.alone(collective, call, flat, option)
        self._finish(tensor, flat, option)

    def _finish(self, tensor, flat, op):
        if op == "mean":
            flat.div_(self.world_size)
        copy_back(tensor, flat.view_as(tensor))
