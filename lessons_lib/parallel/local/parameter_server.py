"""A parameter server: some ranks keep the weights, the others pull them and push gradients (lesson 13)."""

from math import inf

import torch

from ...errors import check_whole
from ..flat import empty_like, pack, unpack
from ..replicas import share_start, trained
from ..wrapped import check_wrapped
from .outer import check_makes_optimizer, made
from .serving import DONE, PULL, PUSH, Server, header_of


def parameter_server(module, comm, optimizer, work, max_staleness=0, num_servers=1):
    """Train `module` by workers that pull weights and push gradients, each at its own pace; all ranks call it.

    The first ranks serve and the others work. Of W workers, each calls `work(server)`, which takes turns:

        server.pull()          the newest weights are in `module`, when this worker may go on
        loss.backward()
        server.push()          the gradients in `module` are on the servers

    A worker's clock c_k is the number of its pushes. `pull()` waits while c_k > s + the clock of the slowest worker
    that is still at work, where s = max_staleness:

        s = 0       synchronous: the servers wait for all W gradients of a clock, and take one step with
                    Σ_k n_k g_k / Σ_k n_k, as data parallelism does;
        s ≥ 1       bounded staleness: each gradient is a step of its own, as soon as it comes;
        s = inf     asynchronous: nobody waits for anybody.

    For s ≥ 1, at most (2s+1)(W−1) steps come between the pull and the push of one gradient (its staleness).

    Args:
        module: with the same parameters on every rank; everybody starts from rank 0's, buffers included. At the end
            all ranks have the servers' weights, and the first worker's buffers.
        comm: `Communicator` of all servers and workers.
        optimizer: makes an optimiser of a list of parameters, such as `partial(torch.optim.Adam, lr=1e-3)`. Each server
            makes its own, for whole parameters of its share.
        work: a function of a `Worker`, with `pull()`, `push()`, `rank` and `num_workers`.
        max_staleness: s, a whole number of at least 0, or `math.inf`.
        num_servers: how many ranks serve. Each keeps some of the parameters, about as many numbers.

    Returns:
        On a worker, what `work` returned. On a server, its list of `Push`: which worker's, and how stale, in the order
        of the steps.

    Raises:
        TypeError, ValueError: bad arguments, fewer parameters than servers, or no worker.
        CollectiveMismatch: the ranks' modules or options differ.
        RuntimeError: a worker pushes twice for one pull, or trains other parameters than at the start.

    Communication: for K parameters of M bytes that need a gradient, and S servers, a worker sends h = 16 S + 8 K bytes
    and receives M per pull, and sends h + M per push; a server moves W times its share of that. At the end, h from each
    worker and a broadcast of M and of each buffer.

    Memory: a server keeps its share of weights and of the optimiser's state, and one gradient, for s = 0 up to W; a
    worker keeps weights and gradients. While something travels, either has a copy of it, and a worker up to two.

    Until the end, buffers are the worker's own, and a server's are those of the start. A gradient that is None on a
    worker counts as 0 in a mean, and where all are None, the parameter is left alone, as in `DataParallel`. Clip the
    mean, or change the learning rate, in a step hook of the optimiser, which runs where the step is taken.

    Source: Li et al., Scaling Distributed Machine Learning with the Parameter Server (2014), §3; Ho et al., More
    Effective Distributed ML via a Stale Synchronous Parallel Parameter Server (2013), §3; lesson 13.
    """
    check_wrapped(module, comm)
    parameters = trained(module)
    _check(comm, parameters, optimizer, work, max_staleness, num_servers)
    share_start(module, comm, f"{max_staleness=}, {num_servers=}", "parameter_server")
    shares = split_parameters(parameters, num_servers)
    # A worker makes one as well, and drops it: what it refuses is refused on every rank.
    made_here = made(optimizer, shares[comm.rank] if comm.rank < num_servers else parameters, "optimizer")
    if comm.rank < num_servers:
        result = Server(comm, shares[comm.rank], made_here, max_staleness, num_servers).serve()
    else:
        worker = Worker(comm, module, shares, max_staleness)
        result = work(worker)
        worker.end()
    for server, share in enumerate(shares):
        flats = pack(share)
        for flat in flats:
            comm.broadcast(flat, server)
        _overwrite(share, flats)
    for buffer in module.buffers():
        comm.broadcast(buffer, num_servers)
    return result


class Worker:
    """One worker's way to the servers; `parameter_server` makes it.

    Attributes:
        rank, num_workers: this worker's number among the workers, from 0, and how many there are.
        clock: how often it has pushed.
    """

    def __init__(self, comm, module, shares, max_staleness):
        self._comm, self._module, self._shares, self._is_synchronous = comm, module, shares, max_staleness == 0
        self.rank, self.num_workers, self.clock = comm.rank - len(shares), comm.world_size - len(shares), 0
        self._known, self._is_fresh, self._is_over = trained(module), False, False

    def pull(self):
        """Overwrite the module's parameters with the servers', when the slowest worker is near enough.

        Communication: see `parameter_server`.
        """
        self._check_is_open()
        asked = [self._comm.isend(header_of(PULL, share), server) for server, share in enumerate(self._shares)]
        for server, share in enumerate(self._shares):
            flats = empty_like(share)
            for flat in flats:
                self._comm.recv(flat, server)
            _overwrite(share, flats)
        _wait(asked)
        self._is_fresh = True

    def push(self, gradient=None, weight=1.0):
        """Hand the servers a gradient.

        Args:
            gradient: a list with a tensor, or None, for each parameter that needs a gradient, in the order of
                `module.parameters()`; by default their `.grad`.
            weight: n_k, how much it counts in the mean of a synchronous step.

        Raises:
            TypeError, ValueError: `gradient` or `weight` does not fit.
            RuntimeError: there was no pull since the last push.
        """
        self._check_is_open()
        gradient = self._checked(gradient, weight)
        if not self._is_fresh:
            raise RuntimeError("push() without a pull() since the last one: add gradients up here, or pull first")
        of, sent = dict(zip(map(id, self._known), gradient, strict=True)), []
        for server, share in enumerate(self._shares):
            grads = [of[id(p)] for p in share]
            sent.append(self._comm.isend(header_of(PUSH, share, weight, grads), server))
            flats = pack([torch.zeros_like(p) if g is None else g for p, g in zip(share, grads, strict=True)])
            sent += [self._comm.isend(flat, server) for flat in flats]
        _wait(sent)
        self.clock, self._is_fresh = self.clock + 1, False

    def end(self):
        """Tell the servers that nothing follows; `parameter_server` does so when `work` returns."""
        _wait([self._comm.isend(header_of(DONE, share), server) for server, share in enumerate(self._shares)])
        self._is_over = True

    def _check_is_open(self):
        if self._is_over:
            raise RuntimeError("the work of this worker has ended: pull and push within it")
        known = set(map(id, self._known))
        if any(p.requires_grad and id(p) not in known for p in self._module.parameters()):
            raise RuntimeError("the module trains other parameters than when parameter_server began")

    def _checked(self, gradient, weight):
        if not 0 <= weight < inf or (weight != 1 and not self._is_synchronous):
            needed = "a number from 0 up" if self._is_synchronous else "1, as each gradient is a step of its own,"
            raise ValueError(f"weight={weight!r}: {needed} is needed")
        gradient = [p.grad for p in self._known] if gradient is None else list(gradient)
        if len(gradient) != len(self._known):
            raise ValueError(f"gradient has {len(gradient)} tensors: {len(self._known)} are needed, or None for each")
        for p, g in zip(self._known, gradient, strict=True):
            if g is not None and (not isinstance(g, torch.Tensor) or g.layout != torch.strided):
                raise TypeError(f"gradient holds a {getattr(g, 'layout', type(g).__name__)}: dense tensors are needed")
            if g is not None and (g.shape != p.shape or g.dtype != p.dtype):
                raise ValueError(
                    f"gradient holds {g.dtype} of shape {tuple(g.shape)}: {p.dtype} of {tuple(p.shape)} is needed"
                )
        return gradient


def split_parameters(parameters, num_servers):
    """A list of parameters for each server, with about as many numbers: the largest first, to who has least."""
    shares, numel = [[] for _ in range(num_servers)], [0] * num_servers
    for parameter in sorted(parameters, key=lambda p: -p.numel()):
        least = numel.index(min(numel))
        shares[least].append(parameter)
        numel[least] += parameter.numel()
    place = {id(p): k for k, p in enumerate(parameters)}
    return [sorted(share, key=lambda p: place[id(p)]) for share in shares]


@torch.no_grad()
def _overwrite(parameters, flats):
    for parameter, value in zip(parameters, unpack(flats, parameters), strict=True):
        parameter.copy_(value)


def _wait(messages):
    for message in messages:
        message.wait()


def _check(comm, parameters, optimizer, work, max_staleness, num_servers):
    check_makes_optimizer(optimizer, "optimizer")
    if not callable(work):
        raise TypeError(f"work is a {type(work).__name__}: a function of a worker is needed")
    if max_staleness != inf:
        check_whole("max_staleness", max_staleness, 0)
    check_whole("num_servers", num_servers, 1)
    if num_servers >= comm.world_size:
        raise ValueError(f"num_servers={num_servers} of {comm.world_size} ranks: at least one worker is needed")
    if num_servers > len(parameters):
        raise ValueError(f"num_servers={num_servers}: at most {len(parameters)} are needed, one for each parameter")
