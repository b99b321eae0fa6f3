"""The operations in which every piece goes straight to who wants it: reduce-scatter, gathers, scatter, all-to-all."""

from functools import lru_cache

import torch

from ..errors import CollectiveMismatch
from ..schedules.delivery import all_to_all, delivery_plan, gather, scatter
from ..schedules.direct import direct_all_gather, direct_reduce_scatter
from ..schedules.schedule import chunk_bounds
from ..trace import Ledger, OnlyWaits
from .call import Call
from .check import check_list, check_op, check_part, check_splits
from .dense import copy_back, dense
from .execute import run


class Deliveries:
    """Operations of a `Communicator` that give from one tensor and take into another.

    Nothing is copied that lies in a `buffer` already: the others take it from there. What lies elsewhere is copied once
    into memory that all ranks of the machine see.
    """

    def reduce_scatter(self, output, input, op="sum"):
        """Combine `input` over all ranks; rank r keeps chunk r of the flattened result in `output`.

        Args:
            output: `chunk_bounds(input.numel(), world_size)[rank]` long; it may be that chunk of `input` itself.
            input: any shape; left as it is. Part of a `buffer` is read without a copy.
            op: as for `all_reduce`.

        Communication: 1 round; (N-1)/N of the payload per rank.
        """
        self._check("reduce_scatter", input)
        check_op(op, input)
        check_part("reduce_scatter", "output", output, input, self.rank, self.world_size)
        sizes = _even(input.numel(), self.world_size)
        self._deliver(Call("reduce_scatter", input, op), direct_reduce_scatter, output, input, sizes, op)

    def all_gather(self, output, input, async_op=False):
        """Put everybody's `input` one after the other into everybody's `output`; rank r's becomes chunk r.

        Args:
            output: any shape, changed in place.
            input: `chunk_bounds(output.numel(), world_size)[rank]` long; it may be that chunk of `output` itself.
            async_op: return at once, with a handle whose `wait()` returns when it is done.

        Communication: 1 round; (N-1)/N of the payload per rank.
        """
        if async_op:
            return self._background.start(lambda: self._all_gather(output, input, wait=False))
        return self._all_gather(output, input)

    def _all_gather(self, output, input, wait=True):
        self._check("all_gather", output, wait)
        check_part("all_gather", "input", input, output, self.rank, self.world_size)
        sizes = _even(output.numel(), self.world_size)
        self._deliver(Call("all_gather", output), direct_all_gather, output, input, sizes)

    def gather(self, tensor, gather_list=None, dst=0):
        """Hand everybody's `tensor` to rank `dst`.

        Args:
            tensor: of the same shape and dtype on all ranks; left as it is.
            gather_list: on rank `dst`, a list of one tensor per rank, which are filled in; None on the others.
            dst: the rank that gathers.

        Communication: 1 round; rank `dst` receives N - 1 payloads, the others send one each.
        """
        self._check("gather", tensor, dst=dst)
        check_list("gather", "gather_list", gather_list, tensor, self.world_size if self.rank == dst else None)
        whole = tensor.new_empty(tensor.numel() * self.world_size if self.rank == dst else 0)
        sizes = [tensor.numel()] * self.world_size
        self._deliver(Call("gather", tensor, f"dst={dst}"), gather, whole, tensor, sizes, root=dst)
        _cut(whole, gather_list or [])

    def scatter(self, tensor, scatter_list=None, src=0):
        """Fill everybody's `tensor` from rank `src`, which has one for each rank.

        Args:
            tensor: of the same shape and dtype on all ranks, changed in place.
            scatter_list: on rank `src`, a list of one tensor per rank; None on the others.
            src: the rank that has them.

        Communication: 1 round; rank `src` sends N - 1 payloads, the others receive one each.
        """
        self._check("scatter", tensor, src=src)
        check_list("scatter", "scatter_list", scatter_list, tensor, self.world_size if self.rank == src else None)
        whole = _joined(scatter_list or [], tensor)
        sizes = [tensor.numel()] * self.world_size
        self._deliver(Call("scatter", tensor, f"src={src}"), scatter, tensor, whole, sizes, root=src)

    def all_to_all(self, output, input, output_split_sizes=None, input_split_sizes=None):
        """Give every rank its part of `input`; what the ranks give to this one fills `output`, in order of rank.

        Args:
            output: a tensor, or a list of one tensor per rank (of any shapes).
            input: likewise. Part of a `buffer` is read without a copy.
            output_split_sizes: how many rows of `output` come from each rank; by default all the same.
            input_split_sizes: how many rows of `input` go to each rank; by default all the same. All ranks give split
                sizes (or lists) or none does.

        Raises:
            ValueError: the sizes do not fit the tensors.
            CollectiveMismatch: a rank gives another number of elements than its peer takes.

        Communication: 1 round; every rank sends what is not its own. With split sizes the ranks tell each other first
        how much comes.
        """
        is_list = check_splits(output, input, output_split_sizes, input_split_sizes, self.world_size)
        self._check("all_to_all", output[0] if is_list else output)
        if is_list:
            row, column = [each.numel() for each in input], [each.numel() for each in output]
            whole = output[0].new_empty(sum(column))
            self._all_to_all(whole, _joined(input, whole), row, column)
            _cut(whole, output)
        elif output_split_sizes is None and input_split_sizes is None:
            sizes = [input.numel() // self.world_size] * self.world_size**2
            self._deliver(Call("all_to_all", input), all_to_all, output, input, sizes)
        else:
            row = _elements(input, input_split_sizes, self.world_size)
            column = _elements(output, output_split_sizes, self.world_size)
            self._all_to_all(output, input, row, column)

    def _all_to_all(self, output, input, row, column):
        """With `row[d]` elements for rank d, and `column[s]` from rank s."""
        name = Call("all_to_all", None, str(input.dtype).removeprefix("torch."), "uneven")
        table = self.tell(f"{name} of sizes", row + column)
        self._background.alone(_compare, table)
        sizes = [number for numbers in table for number in numbers[: self.world_size]]
        self._deliver(name, all_to_all, output, input, sizes)

    def tell(self, call, numbers):
        """Everybody's whole `numbers`, a list per rank. They are no payload: neither counted nor traced.

        Args:
            call: what the ranks do together, in words.
            numbers: as many on every rank, each of 64 bits.

        Raises:
            CollectiveMismatch: other ranks do something else, or have another number of them.
        """
        flat = torch.zeros(self.world_size * len(numbers), dtype=torch.int64)
        flat[self.rank * len(numbers) : (self.rank + 1) * len(numbers)] = torch.tensor(numbers)
        plan = self._plans.of(_schedule(direct_all_gather, self.world_size), flat.numel())
        trace = self.transport.trace
        self.transport.trace = trace and OnlyWaits(trace)
        try:
            self._background.alone(run, call, plan, flat, self.transport, Ledger())
        finally:
            self.transport.trace = trace
        return flat.view(self.world_size, -1).tolist()

    def _deliver(self, call, make, output, input, sizes, op="sum", **options):
        """Do the delivery that `make` describes; chunk c has `sizes[c]` elements."""
        schedule = _schedule(make, self.world_size, **options)
        plan = _plan(schedule, self.rank, tuple(sizes))
        target, source = dense(output).view(-1), dense(input).view(-1)
        if _overlap(source, target) and not _is_own_chunk(plan.kept, source, target):
            source = source.clone()
        for (start, stop), (first, last) in plan.kept:
            target[first:last].copy_(source[start:stop])
        self._background.alone(run, call, plan, target, self.transport, self.ledger, op, source)
        if op == "mean":
            target.div_(self.world_size)
        copy_back(output, target.view_as(output))


@lru_cache(maxsize=64)
def _schedule(make, world_size, **options):
    return make(world_size, **options)


@lru_cache(maxsize=256)  # a plan takes longer to make than a small delivery does
def _plan(schedule, rank, sizes):
    return delivery_plan(schedule, rank, sizes)


def _even(numel, num_chunks):
    return [stop - start for start, stop in chunk_bounds(numel, num_chunks)]


def _elements(tensor, split_sizes, world_size):
    """How many elements the rows of each rank have."""
    split_sizes = split_sizes or [len(tensor) // world_size] * world_size
    return [rows * tensor[:1].numel() for rows in split_sizes]


def _compare(table):
    """Raise unless every rank gives what its peer takes; table[r]: what r gives to each, then what it takes."""
    size = len(table)
    for src, dst in ((src, dst) for src in range(size) for dst in range(size)):
        given, taken = table[src][dst], table[dst][size + src]
        if given != taken:
            calls = [(src, f"{given} elements for rank {dst}"), (dst, f"{taken} elements from rank {src}")]
            raise CollectiveMismatch({rank: f"all_to_all with {call}" for rank, call in calls})


def _joined(tensors, like):
    """The tensors in one piece, one after the other."""
    return torch.cat([dense(each).view(-1) for each in tensors]) if tensors else like.new_empty(0)


def _cut(whole, tensors):
    """Fill `tensors` from the one that holds them one after the other."""
    for tensor, piece in zip(tensors, whole.split([each.numel() for each in tensors]), strict=True):
        copy_back(tensor, piece.view_as(tensor))


def _overlap(one, other):
    starts_first, starts_last = sorted((one, other), key=torch.Tensor.data_ptr)
    return starts_last.numel() > 0 and starts_last.data_ptr() < starts_first.data_ptr() + starts_first.nbytes


def _is_own_chunk(kept, source, target):
    """Whether the one tensor is what this rank keeps of the other: then nobody reads what this rank writes."""
    if len(kept) != 1:
        return False
    (start, stop), (first, _) = kept[0]
    is_whole = stop - start in (source.numel(), target.numel())
    return is_whole and source[start:].data_ptr() == target[first:].data_ptr()
