"""A small model learns what a large one says (lesson 24)."""

from torch.nn import functional


def distillation_loss(student, teacher, labels=None, temperature=2.0, weight=0.5):
    """weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 - weight) · cross-entropy(student, labels).

    At a temperature above 1 the teacher also tells which wrong classes are nearly right. T² keeps the gradient's size:
    softened logits have gradients about 1/T² as large.

    Args:
        student, teacher: logits (N, K); gradients flow to the student alone.
        labels: class numbers (N,), or None with weight=1.
        temperature: T, above 0.
        weight: of the teacher, from 0 to 1.

    Returns:
        A scalar, the mean over samples.

    Raises:
        ValueError: a number is outside, the shapes differ, or labels are missing.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), §2.
    """
    if not temperature > 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature={temperature!r}, weight={weight!r}: above 0, and from 0 to 1, are needed")
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: two of (N, K) are needed")
    if labels is None and weight < 1:
        raise ValueError(f"labels=None with weight={weight!r}: labels, or weight=1, are needed")
    log_ours = functional.log_softmax(student / temperature, dim=1)
    log_theirs = functional.log_softmax(teacher.detach() / temperature, dim=1)
    soft = temperature**2 * functional.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True)
    return soft if labels is None else weight * soft + (1 - weight) * functional.cross_entropy(student, labels)
