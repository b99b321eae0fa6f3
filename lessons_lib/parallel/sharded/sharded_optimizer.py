"""ZeRO, stage 1: every rank has all weights and gradients, but steps only its share of them (lesson 14)."""

import zlib

import torch
from torch.autograd.graph import increment_version

from ..copies import is_cut_within
from ..wrapped import check_communicator
from .layout import Layout
from .mixing import check_steps_alone
from .optimizer_state import cut_state, gather_states


class ShardedOptimizer(torch.optim.Optimizer):
    """Steps 1/N of the numbers on each of N ranks, and hands everybody the others' new weights.

    The weights of a parameter group lie one after the other in one flat tensor, cut into N equal chunks in the middle
    of tensors where it comes to that. Rank r steps chunk r by `optimizer_class`, whose state has the size of a chunk;
    an all-gather brings the other chunks. The result is that of the unsharded optimiser, to the bit. At the start every
    rank takes over rank 0's weights.

    Gradients must be those of the whole batch, equal on all ranks, as `DataParallel` makes them: where they are not,
    every rank raises.

    Args:
        params: parameters, named ones, or groups, as for any optimiser of torch; on `comm.device`. Their `.data` are
            views of the flat tensor from then on.
        optimizer_class: any optimiser whose step treats each number by itself, such as SGD, Adam or RMSprop.
        comm: `Communicator`.
        **options: of `optimizer_class`.

    Attributes:
        inner: the `optimizer_class` that steps this rank's pieces, and holds their state.

    Raises:
        TypeError: an argument of another type.
        ValueError: an option is refused by `optimizer_class`, or its step mixes numbers of a tensor, as that of Muon,
            Adafactor or LBFGS does (which is tried out, so that it also holds for a class of your own); a parameter is
            split over ranks of `comm`, as by `parallelize`.
        CollectiveMismatch: parameters differ in shape between ranks, or gradients in value.

    Communication: an all-gather of the P weights that have gradients, in which a rank sends (N - 1) ceil(P/N) numbers,
    one for each group and dtype. Before it the ranks compare a checksum of few numbers, which is no payload.

    Memory: state ceil(P/N) numbers for each number that `optimizer_class` keeps; weights and gradients P each.

    Differs from torch's `ZeroRedundancyOptimizer`, which gives whole tensors to ranks: the shares are equal, and
    `state_dict()` needs no `consolidate_state_dict` before. Both `state_dict` and `load_state_dict` are called by all
    ranks; what they give and take is the state of the unsharded optimiser, for any number of ranks.

    Source: Rajbhandari et al., ZeRO (2020), §5.1; lesson 14.
    """

    def __init__(self, params, optimizer_class, comm, **options):
        check_communicator(comm)
        if not isinstance(optimizer_class, type) or not issubclass(optimizer_class, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer_class={optimizer_class!r}: a class of optimiser is needed, such as torch.optim.Adam"
            )
        self.comm, self._class, self._options, self.inner, self._flats = comm, optimizer_class, options, None, []
        super().__init__(params, optimizer_class([torch.zeros(1, 1)], **options).defaults)
        self.inner = optimizer_class(self._groups_of_pieces(), **options)

    def add_param_group(self, param_group):
        """Step more parameters. All ranks call it together."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_steps_alone(self._class, _options_of(group), self._options)
        for parameter in group["params"]:
            if is_cut_within(parameter, self.comm):
                raise ValueError(
                    f"a parameter {tuple(parameter.shape)} is split over ranks of comm: a comm of ranks that hold the "
                    "same of it is needed, such as another axis of the mesh"
                )
            if parameter.device.type != self.comm.device.type:
                raise ValueError(f"a parameter is on {parameter.device}, this rank on {self.comm.device}")
        kinds = dict.fromkeys((p.dtype, p.requires_grad) for p in group["params"])
        shapes = [(tuple(p.shape), str(p.dtype), p.requires_grad) for p in group["params"]]
        words = f"{len(shapes)} tensors, shapes {zlib.crc32(repr(shapes).encode()):08x}"
        self.comm.transport.agree(f"a group of ShardedOptimizer({self._class.__name__}, {words})")
        # Frozen parameters have a flat tensor of their own, which does not travel while they have no gradient.
        flats = [Flat([p for p in group["params"] if (p.dtype, p.requires_grad) == kind], self.comm) for kind in kinds]
        self._flats.append(flats)
        if self.inner is not None:
            self.inner.add_param_group(self._groups_of_pieces()[-1])

    def _groups_of_pieces(self):
        """The parameter groups of the optimiser that steps this rank's pieces."""
        pieces = [[p for flat in flats for p in flat.pieces if p is not None] for flats in self._flats]
        return [{**_options_of(g), "params": each} for g, each in zip(self.param_groups, pieces, strict=True)]

    def _all_flats(self):
        return [flat for flats in self._flats for flat in flats]

    def step(self, closure=None):
        """Step this rank's chunk and gather the others'. All ranks call it together.

        Args:
            closure: computes the loss and its gradients, once.

        Returns:
            What `closure` gives.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        flats = [flat for flat in self._all_flats() if flat.take_gradients()]
        gradients = _checksum([p.grad for flat in self._all_flats() for p in flat.parameters])
        self.comm.transport.agree(f"step of a ShardedOptimizer with gradients {gradients}, which must be equal")
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update(_options_of(outer))
        try:
            self.inner.step()
        finally:
            self.inner.zero_grad()
        for outer, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            outer.update(_options_of(inner))
        for flat in flats:
            flat.gather()
        return loss

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self):
        """What the unsharded optimiser would save, on every rank. All ranks call it together."""
        for flat in self._all_flats():
            states = gather_states(flat.layout, flat.pieces, self.inner.state, self.comm)
            self.state.update({p: state for p, state in zip(flat.parameters, states, strict=True) if state})
        try:
            return super().state_dict()
        finally:
            self.state.clear()

    def load_state_dict(self, state_dict):
        """Keep this rank's share of a state that the unsharded optimiser or any number of ranks has saved."""
        super().load_state_dict(state_dict)
        self.inner.state.clear()
        for flat in self._all_flats():
            parts = flat.layout.parts(self.comm.rank)
            for parameter, piece, part in zip(flat.parameters, flat.pieces, parts, strict=True):
                if piece is not None and parameter in self.state:
                    self.inner.state[piece] = cut_state(self.state[parameter], parameter.shape, part)
        self.state.clear()

    def __reduce__(self):
        raise TypeError("a ShardedOptimizer belongs to its own rank and cannot be copied or pickled: use state_dict()")


class Flat:
    """Parameters of one dtype in one flat tensor, of which this rank steps its chunk.

    Attributes:
        parameters, pieces: of each parameter this rank's share as a leaf of its own, or None.
        layout: their `Layout`.
    """

    def __init__(self, parameters, comm):
        self.parameters, self._comm = parameters, comm
        self.layout = Layout([p.shape for p in parameters], comm.world_size)
        self._whole = comm.buffer(self.layout.chunk * comm.world_size, parameters[0].dtype)
        self._views = self.layout.views(self._whole)
        self._move_in()
        comm.broadcast(self._whole)
        first = comm.rank * self.layout.chunk
        self._own = self._whole[first : first + self.layout.chunk]
        pieces = self.layout.pieces(self._own, comm.rank)
        # An empty tensor has a state too: rank 0 keeps it.
        is_mine = [
            piece.numel() > 0 or p.numel() == comm.rank == 0 for p, piece in zip(parameters, pieces, strict=True)
        ]
        self.pieces = [
            torch.nn.Parameter(piece, piece.is_floating_point() or piece.is_complex()) if mine else None
            for piece, mine in zip(pieces, is_mine, strict=True)
        ]

    @torch.no_grad()
    def _move_in(self):
        """Let the parameters lie in the flat tensor, also those to which somebody has given other memory since."""
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if parameter.data_ptr() != view.data_ptr() or parameter.dtype != view.dtype:
                if parameter.dtype != view.dtype:
                    raise RuntimeError(
                        f"a parameter has become {parameter.dtype}, its optimiser was made for {view.dtype}: make "
                        "the ShardedOptimizer after module.to(dtype)"
                    )
                view.copy_(parameter.data)
                parameter.data = view

    def take_gradients(self):
        """Hand the pieces their share of the gradients; whether there is any gradient."""
        self._move_in()
        parts = self.layout.parts(self._comm.rank)
        for parameter, piece, (start, stop) in zip(self.parameters, self.pieces, parts, strict=True):
            gradient = parameter.grad
            if gradient is not None and gradient.layout is not torch.strided:
                raise TypeError(f"a gradient of layout {gradient.layout}: dense ones are needed, so use sparse=False")
            if gradient is not None and piece is not None:
                piece.grad = gradient.detach().reshape(-1)[start:stop].view(piece.shape)
        return any(parameter.grad is not None for parameter in self.parameters)

    def gather(self):
        """Take over the other ranks' chunks."""
        self._comm.all_gather(self._whole, self._own)
        increment_version(self.parameters)  # a graph of the old weights finds out that they have changed


def _options_of(group):
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _checksum(gradients, num_looked_at=4, most=256):
    """Of how many gradients there are, and of some numbers of the smallest ones: enough to find ranks that differ."""
    there = [number for number, gradient in enumerate(gradients) if gradient is not None]
    smallest = sorted((gradients[number].numel(), number) for number in there)[:num_looked_at]
    total = zlib.crc32(repr(there).encode())
    for _, number in smallest:
        total = zlib.crc32(gradients[number].detach().reshape(-1)[:most].double().numpy().tobytes(), total)
    return f"{total:08x}"
