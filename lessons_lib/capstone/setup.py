"""What has to be planned: a model, a cluster on which ranks die, and a deadline (lesson 28)."""

from dataclasses import dataclass

from ..cost import Cluster, Model


@dataclass(frozen=True)
class Setup:
    """A training run that has to be planned.

    Attributes:
        seed: of the weights, the batches, and what strikes the run.
        model: a `cost.Model` of a GPT.
        cluster: a `cost.Cluster`: its devices, the memory of each, the wires, and the price of an hour.
        batch: sequences per step. num_steps: how many steps have to be done.
        mean_between: one step in so many loses a rank, on average; then all start again from the last checkpoint.
        save_s, restart_s: seconds that a checkpoint takes, and from the death of a rank until all train again.
        deadline_s: seconds that the run may take.
    """

    seed: int
    model: Model
    cluster: Cluster
    batch: int
    num_steps: int
    mean_between: float
    save_s: float
    restart_s: float
    deadline_s: float = float("inf")

    def __str__(self):
        model, cluster, links = self.model, self.cluster, self.cluster.links
        inside = f" in nodes of {links.group_size}" if links.inside else ""
        shapes = f"{model.num_layers} layers, width {model.width}, {model.heads} heads, context {model.context}"
        device = f"{cluster.flops / 1e9:.2f} GFLOP/s and {cluster.memory_bytes / 1e6:.1f} MB each"
        wires = f"{1e3 * links.latency_s:.1f} ms and {links.bandwidth_Bps / 1e6:.1f} MB/s"
        return f"""\
model     {shapes}
training  {self.num_steps} steps of {self.batch} sequences in at most {self.deadline_s:.1f} s
devices   up to {cluster.num_devices}{inside}, {device}
wires     {wires}{" between nodes" if inside else ""}
failures  a rank dies in one step of {self.mean_between:g}; {self.restart_s:.1f} s to start again
store     {self.save_s:.1f} s per checkpoint"""
