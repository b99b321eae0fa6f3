"""What gradient compressors share: error feedback, what one step leaves out the next one adds (lesson 24)."""

import torch


class Compression:
    """A hook of `DataParallel` that sends less than the gradients, and remembers what it did not send.

    With g_k the part of rank k in the mean gradient and e_k what was left of the last step, x_k = g_k + e_k is
    compressed to what all ranks can add up, and e_k = x_k - (rank k's part of that sum). Without feedback e_k = 0.

    Args:
        feedback: whether to remember.

    What is left belongs to a bucket and its parameters: it starts at 0 again where these change, as when a layer is
    frozen. A step whose gradients are not finite leaves it as it was, and gives gradients that are not finite on every
    rank. It is part of the state of a run (`state_dict`), each rank's own.

    Source: Stich, Cordonnier and Jaggi, Sparsified SGD with Memory (2018); Karimireddy et al. (2019).
    """

    def __init__(self, feedback=True):
        self.feedback, self._left = bool(feedback), {}  # {number of the bucket: (ids of its parameters, what is left)}

    def __call__(self, bucket, comm):
        """Leave the sum over ranks of what is compressed in `bucket.gradients`. All ranks call it together."""
        gradients, ids = bucket.gradients, tuple(bucket.pairs)
        if not gradients.numel():
            return
        known, left = self._left.get(bucket.index, (ids, None))
        if known not in (ids, None):
            self.forget(bucket.index)
        elif left is not None:
            if left.shape != gradients.shape:
                raise ValueError(
                    f"bucket {bucket.index} has {len(gradients)} numbers, and the loaded state {len(left)}: that "
                    "of the same model with the same bucket_cap_mb is needed"
                )
            gradients.add_(left)
        whole = gradients.clone() if self.feedback else None
        own = self.reduce(bucket, comm)
        if self.feedback and torch.isfinite(gradients).all():
            self._left[bucket.index] = ids, whole.sub_(own)

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
        return {"left": {str(index): left.clone() for index, left in self.left().items()}}

    def load_state_dict(self, state):
        """Go on from there, with the same model, bucket size and number of ranks."""
        self._left = {int(index): (None, left.clone()) for index, left in state["left"].items()}
