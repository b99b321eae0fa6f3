"""What travels between the stages of a pipeline: tensors whose shape the receiver learns with the first of them."""

import torch

FAILED = object()  # stands for a block that was not computed, because its step or one before it has failed
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
_MAX_DIMS = 8
_NO_SHAPE = -1  # in a header: FAILED
# What a tensor holds in place of numbers: nans that no computation makes, and whole numbers and truths that none needs.
_MARKS = {"failed": {True: 0xFF, False: 0x80}, "no gradient": {True: 0xFE, False: 0x81}}


class Wire:
    """Sends and receives blocks of a pipeline: tensors, None for a gradient that there is not, or `FAILED`.

    The first activation of a stage for a new shape of input is announced by its own shape; a gradient has the shape of
    the activation that it belongs to. What is no tensor travels as one, so that a step moves the same bytes.
    """

    def __init__(self, comm):
        self._comm, self._sending = comm, []
        self._key, self._shapes, self._announced = None, {}, set()  # (input, stage): (shape, dtype)

    def begin(self, x):
        """Start a step whose whole batch is `x`."""
        self._key = tuple(x.shape), x.dtype

    def learn(self, stage, output):
        """Note what the outputs of a stage look like."""
        self._shapes[self._key, stage] = output.shape, output.dtype

    def send(self, block, tensor, dst):
        """Begin to send; the tensor is kept until it has been taken."""
        self._sending = [message for message in self._sending if not message.is_completed()]
        kind, stage, _ = block
        known = self._key, stage
        if kind == "activation" and known not in self._announced:
            self._sending.append(self._comm.isend(_header(tensor), dst))
            if tensor is FAILED:
                return
            self._announced.add(known)
        if tensor is None or tensor is FAILED:
            if known not in self._shapes:
                return  # then the other expects none: it has failed before it had a shape
            tensor = _marked(*self._shapes[known], self._comm.device, "no gradient" if tensor is None else "failed")
        self._sending.append(self._comm.isend(tensor, dst))

    def receive(self, block, src):
        """Wait for a block."""
        kind, stage, _ = block
        known = self._key, stage
        if kind == "gradient" and known not in self._announced:
            return FAILED
        if known not in self._shapes:
            shape, dtype = self._receive_header(src)
            if dtype is None:
                return FAILED
            self._shapes[known] = shape, dtype
        shape, dtype = self._shapes[known]
        return _read(self._receive(shape, dtype, src))

    def end(self):
        """Wait until all has been taken."""
        for message in self._sending:
            message.wait()
        self._sending.clear()

    def forget(self):
        """Let go of a step that has broken off."""
        self._sending.clear()

    def hand_over(self, x, src, dst):
        """Give `x` of rank `src` to rank `dst`; on other ranks nothing happens."""
        if self._comm.rank == src:
            self._comm.send(_header(x), dst)
            if x is not FAILED:
                self._comm.send(x, dst)
        elif self._comm.rank == dst:
            shape, dtype = self._receive_header(src)
            x = FAILED if dtype is None else self._receive(shape, dtype, src)
        return x

    def tell(self, x, src):
        """Rank `src`'s `x` on every rank."""
        header = _header(x) if self._comm.rank == src else _empty_header()
        self._comm.broadcast(header, src)
        shape, dtype = _shape_in(header)
        x = x.contiguous() if self._comm.rank == src else torch.empty(shape, dtype=dtype, device=self._comm.device)
        self._comm.broadcast(x, src)
        return x

    def _receive(self, shape, dtype, src):
        tensor = torch.empty(shape, dtype=dtype, device=self._comm.device)
        self._comm.recv(tensor, src)
        return tensor

    def _receive_header(self, src):
        header = _empty_header()
        self._comm.recv(header, src)
        return _shape_in(header)


def check_output(output, stage):
    """Refuse what cannot travel.

    Raises:
        TypeError: the output of a stage is no dense tensor of a dtype and a number of dimensions that a header names.
    """
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"stage {stage} returned a {type(output).__name__}: one tensor is needed")
    if output.layout != torch.strided or output.dtype not in _DTYPES or output.dim() > _MAX_DIMS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(
            f"stage {stage} returned {output.layout} {output.dtype} of {output.dim()} dimensions: a dense tensor of at "
            f"most {_MAX_DIMS} is needed, of one of the dtypes {names}"
        )


def _marked(shape, dtype, device, what):
    """A tensor that stands for `what`."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    tensor.view(-1).view(torch.uint8).fill_(0xFF if dtype.is_floating_point else _MARKS[what][False])
    if tensor.numel():
        tensor.view(-1)[:1].view(torch.uint8)[0] = _MARKS[what][dtype.is_floating_point]
    return tensor


def _read(tensor):
    """What a tensor stands for: itself, None or `FAILED`."""
    if tensor.numel() == 0:
        return tensor
    first, *rest = tensor.view(-1)[:1].view(torch.uint8).tolist()
    is_float = tensor.is_floating_point()
    for what, marks in _MARKS.items():
        if first == marks[is_float] and all(byte == (0xFF if is_float else first) for byte in rest):
            return None if what == "no gradient" else FAILED
    return tensor


def _empty_header():
    return torch.zeros(_MAX_DIMS + 2, dtype=torch.int64)


def _header(tensor):
    """Shape and dtype as ten whole numbers."""
    header = _empty_header()
    if tensor is FAILED:
        header[0] = _NO_SHAPE
        return header
    header[0], header[1] = _DTYPES.index(tensor.dtype), tensor.dim()
    header[2 : 2 + tensor.dim()] = torch.tensor(tensor.shape)
    return header


def _shape_in(header):
    dtype, num_dims, *sizes = header.tolist()
    return torch.Size(sizes[:num_dims]), None if dtype == _NO_SHAPE else _DTYPES[dtype]
