"""What travels between the stages of a pipeline: tensors whose shape the receiver learns with the first of them."""

import torch

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
_MAX_DIMS = 8


class Wire:
    """Sends and receives blocks of a pipeline.

    The first activation of a stage for a new shape of input is announced by its own shape; a gradient has the shape of
    the activation that it belongs to.
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
        kind, stage, _ = block
        if kind == "activation" and (self._key, stage) not in self._announced:
            self._announced.add((self._key, stage))
            self._sending.append(self._comm.isend(_header(tensor), dst))
        self._sending.append(self._comm.isend(tensor, dst))

    def receive(self, block, src):
        """Wait for a block."""
        _, stage, _ = block
        if (self._key, stage) not in self._shapes:
            header = torch.zeros(_MAX_DIMS + 2, dtype=torch.int64)
            self._comm.recv(header, src)
            self._shapes[self._key, stage] = _read(header)
        shape, dtype = self._shapes[self._key, stage]
        tensor = torch.empty(shape, dtype=dtype, device=self._comm.device)
        self._comm.recv(tensor, src)
        return tensor

    def end(self):
        """Wait until all has been taken."""
        for message in self._sending:
            message.wait()
        self._sending.clear()

    def hand_over(self, x, src, dst):
        """Give `x` of rank `src` to rank `dst`; on other ranks nothing happens."""
        if self._comm.rank == src:
            self._comm.send(_header(x), dst)
            self._comm.send(x, dst)
        elif self._comm.rank == dst:
            header = torch.zeros(_MAX_DIMS + 2, dtype=torch.int64)
            self._comm.recv(header, src)
            shape, dtype = _read(header)
            x = torch.empty(shape, dtype=dtype, device=self._comm.device)
            self._comm.recv(x, src)
        return x

    def tell(self, x, src):
        """Rank `src`'s `x` on every rank."""
        header = _header(x) if self._comm.rank == src else torch.zeros(_MAX_DIMS + 2, dtype=torch.int64)
        self._comm.broadcast(header, src)
        shape, dtype = _read(header)
        x = x.contiguous() if self._comm.rank == src else torch.empty(shape, dtype=dtype, device=self._comm.device)
        self._comm.broadcast(x, src)
        return x


def _header(tensor):
    """Shape and dtype as ten whole numbers."""
    if tensor.dim() > _MAX_DIMS or tensor.dtype not in _DTYPES:
        raise TypeError(f"a stage gave {tensor.dtype} of {tensor.dim()} dimensions: at most {_MAX_DIMS} are possible")
    header = torch.zeros(_MAX_DIMS + 2, dtype=torch.int64)
    header[0], header[1] = _DTYPES.index(tensor.dtype), tensor.dim()
    header[2 : 2 + tensor.dim()] = torch.tensor(tensor.shape)
    return header


def _read(header):
    dtype, num_dims, *sizes = header.tolist()
    return torch.Size(sizes[:num_dims]), _DTYPES[dtype]
