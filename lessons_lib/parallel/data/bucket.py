"""Gradients that travel together lie in one flat buffer (lesson 12)."""

import torch

FLAG_DTYPES = (torch.float32, torch.float64)  # these hold counts of samples and ranks exactly


class Bucket:
    """Gradients of several parameters in one flat buffer.

    Args:
        parameters: whose gradients; all of one dtype. None if the bucket holds nothing but flags.
        comm: `Communicator`.
        num_flags: how many numbers more travel behind the gradients.
        index: its place among the buckets of a model.

    Attributes:
        flat: all of it, 1-D, in memory that collectives reduce in place.
        gradients, flags: its two parts.
        pairs: of each parameter, by its id (hashing it costs more), itself and its part of `flat`, in its shape.
        missing: those pairs whose gradient has not come yet in this pass.
        work: the handle of the reduction under way, or None.
        weight: what this rank's gradients count in this pass.
        unused: the ids of those parameters that no rank has used in this pass, where a hook adds up: what it leaves of
            them is dropped.
    """

    def __init__(self, parameters, comm, num_flags, index=0):
        self.index = index
        numel = sum(parameter.numel() for parameter in parameters)
        self.flat = comm.buffer(numel + num_flags, parameters[0].dtype if parameters else torch.float32)
        self.gradients, self.flags = self.flat[:numel], self.flat[numel:]
        parts = self.gradients.split([parameter.numel() for parameter in parameters]) if parameters else []
        self.pairs = {id(p): (p, part.view_as(p)) for p, part in zip(parameters, parts, strict=True)}
        self.missing, self.work, self.weight, self.unused = {}, None, 0.0, []
        # Multiplying by a tensor is faster than by a number, most of all by one of the same dtype, if that is exact.
        self._factor = torch.tensor(0.0, dtype=self.flat.dtype if self.flat.dtype in FLAG_DTYPES else torch.float64)

    def open(self, weight):
        """A pass begins, in which this rank's gradients count `weight`."""
        self.settle()  # what a pass that failed has begun
        self.missing = self.pairs.copy()
        if weight != self.weight:
            self.weight = weight
            self._factor.fill_(weight)

    def fill_missing(self):
        """Put in what has not come yet: zeros for a parameter without a gradient."""
        for parameter, view in self.missing.values():
            self.fill(parameter, view)

    def settle(self):
        """Wait for the reduction under way, if there is one."""
        if self.work is not None:
            work, self.work = self.work, None
            work.wait()

    def fill(self, parameter, view):
        """Put this rank's gradient into its part of the buffer, weighted."""
        gradient = parameter.grad
        if gradient is None or self.weight == 0:  # without samples, whatever it is, even nan, it does not count
            view.zero_()
        elif gradient.layout is not torch.strided:
            raise TypeError(f"a gradient of layout {gradient.layout}: dense ones are needed, so use sparse=False")
        else:
            torch.mul(gradient, self._factor, out=view)


def make_buckets(parameters, comm, cap_bytes, num_flags):
    """Buckets of about `cap_bytes`, filled from the last parameter to the first; behind the last one lie the flags."""
    groups, size_bytes = [], 0
    for parameter in reversed(parameters):
        same = groups and groups[-1][0].dtype == parameter.dtype
        if not same or size_bytes + parameter.nbytes > cap_bytes:
            groups.append([])
            size_bytes = 0
        groups[-1].append(parameter)
        size_bytes += parameter.nbytes
    if groups[-1][0].dtype not in FLAG_DTYPES:
        groups.append([])
    flags = [0] * (len(groups) - 1) + [num_flags]
    return [Bucket(group, comm, *each, index) for index, (group, *each) in enumerate(zip(groups, flags, strict=True))]
