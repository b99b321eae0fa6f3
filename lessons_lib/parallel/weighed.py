"""Outputs whose gradients are weighed by numbers of samples already: their loss is not to be weighed again."""

KEY = "lessons_lib: weighed over"


def note_weighed(nodes, comm):
    """Note at `nodes` of a graph that the gradients behind them will be weighed over the ranks of `comm`."""
    for node in nodes:
        node.metadata[KEY] = comm


def refuse_weighed(loss, comm):
    """Let backward passes from `loss` raise if a strategy that its graph leads to weighs over ranks of `comm` too."""
    node = loss.grad_fn

    def check(gradient):
        if _is_weighed_over(node, comm):
            raise RuntimeError(
                "share_of_mean, and a DataParallel or FullySharded that weighs by batch: each rank would count twice. "
                "Take the loss itself and net(..., weight=n), or wrap the module with weight_by_batch=False"
            )

    loss.register_hook(check)


def _is_weighed_over(root, comm):
    """Whether the graph from `root` on leads to an output that is weighed over at least two of the ranks of `comm`."""
    waiting, seen = [root], {root, None}
    while waiting:
        node = waiting.pop()
        other = node.metadata.get(KEY)
        if other is not None and len({*other.ranks} & {*comm.ranks}) > 1:
            return True
        new = [following for following, _ in node.next_functions if following not in seen]
        seen.update(new)
        waiting += new
    return False
