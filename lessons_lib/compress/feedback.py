"""What gradient compressors share: error feedback, what one step leaves out the next one adds (lesson 24)."""

import weakref

import torch


class Compression:
    """A hook of `DataParallel` that sends less than the gradients, and remembers what it did not send.

    With g_k the part of rank k in the mean gradient and e_k what was left of the last step, x_k = g_k + e_k is
    compressed to what all ranks can add up, and e_k = x_k - (rank k's part of that sum). Without feedback e_k = 0.

    Args:
        feedback: whether to remember.

    Every `DataParallel` needs one of its own: what is left belongs to its parameters. It starts at 0 again where those
    of a bucket change, as when a layer is frozen, and stays as it is for a parameter that no rank has used in a step,
    and after a step whose gradients are not finite, which all ranks then see. It is part of the state of a run
    (`state_dict`), each rank's own.

    Source: Stich, Cordonnier and Jaggi, Sparsified SGD with Memory (2018); Karimireddy et al. (2019).
    """

    def __init__(self, feedback=True):
        self.feedback, self._reducer = bool(feedback), None
        self._left = {}  # {number of the bucket: (ids of its parameters, or None after a load, what is left)}

    def serve(self, reducer):
        """Belong to a `DataParallel`, given its `Reducer`, until that is gone or its module is wrapped again.

        Raises:
            ValueError: it belongs to another one.
        """
        other = self._reducer and self._reducer()
        if other is not None and other is not reducer and not other.is_released:
            raise ValueError(f"hook={type(self).__name__}: it serves another DataParallel already, a new one is needed")
        self._reducer = weakref.ref(reducer)

    def __call__(self, bucket, comm):
        """Leave the sum over ranks of what is compressed in `bucket.gradients`. All ranks call it together."""
        gradients, ids = bucket.gradients, tuple(bucket.pairs)
        left = self._left_of(bucket)
        due = unless_unused(left, bucket)
        gradients.add_(due)
        whole = gradients.clone()
        own = self.reduce(bucket, comm)
        if self.feedback and torch.isfinite(gradients).all():
            self._left[bucket.index] = ids, whole - own + (left - due)

    def _left_of(self, bucket):
        known, left = self._left.get(bucket.index, (None, None))
        if known not in (None, tuple(bucket.pairs)):
            self.forget(bucket.index)
            left = None
        if left is None:
            return torch.zeros_like(bucket.gradients)
        if left.shape != bucket.gradients.shape:
            raise ValueError(
                f"bucket {bucket.index} has {len(bucket.gradients)} numbers, and the loaded state {len(left)}: that "
                "of the same model with the same bucket_cap_mb is needed"
            )
        return left

    def reduce(self, bucket, comm):
        """Replace `bucket.gradients` by the sum over ranks of what each can send, and return this rank's part of it."""
        raise NotImplementedError

    def forget(self, index):
        """Drop what is kept for bucket `index`, whose parameters are others now."""
        self._left.pop(index, None)

    def bytes_sent(self, shapes, world_size, itemsize=4):
        """Bytes that a rank sends per step for gradients of these `shapes` in one bucket, `itemsize` bytes a number."""
        raise NotImplementedError

    def left(self):
        """What is not sent yet: {number of the bucket: 1-D tensor}."""
        return {index: left for index, (_, left) in self._left.items()}

    def state_dict(self):
        """What the next step needs beside the weights; differs between ranks."""
        left = {str(index): left.clone() for index, left in self.left().items()}
        return {"kind": type(self).__name__, "left": left}

    def load_state_dict(self, state):
        """Go on from there, with the same model, bucket size and number of ranks.

        Raises:
            ValueError: the state is of another kind of hook.
        """
        if state["kind"] != type(self).__name__:
            raise ValueError(f"hook={type(self).__name__}: the state is of a {state['kind']}, which is needed")
        self._left = {int(index): (None, left.clone()) for index, left in state["left"].items()}

    def __getstate__(self):
        return self.__dict__ | {"_reducer": None}  # a copy serves nobody yet


def unless_unused(left, bucket, start=0):
    """Of what is left of the numbers of `bucket` from `start` on, that which counts now: 0 for unused parameters."""
    due, place = left.clone(), -start
    for key, (_, view) in bucket.pairs.items():
        if key in bucket.unused:
            due[max(0, place) : max(0, place + view.numel())] = 0
        place += view.numel()
    return due
