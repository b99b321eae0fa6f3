"""Was this sample in the training data? An attack by loss, and the least ε that what it achieves allows (lesson 25)."""

import math
from typing import NamedTuple

import torch
from scipy.special import betaincinv

from ..errors import check_whole


class Attack(NamedTuple):
    """What an attack achieved on samples that it had not seen when its threshold was chosen.

    Attributes:
        threshold: it says "member" of a score at or below this.
        true_positives, num_members: so many of so many members it called members.
        false_positives, num_others: so many of so many others it called members too.
    """

    threshold: float
    true_positives: int
    num_members: int
    false_positives: int
    num_others: int

    @property
    def tpr(self):
        return self.true_positives / self.num_members

    @property
    def fpr(self):
        return self.false_positives / self.num_others


def threshold_attack(members, others):
    """Call a sample a member if its score, such as its loss, is low.

    The threshold is the one with the largest TPR − FPR on every other score, and what it achieves is counted on the
    rest: a threshold that is chosen and judged on the same scores flatters itself.

    Args:
        members, others: scores, (N,) and (M,), at least two each; their order must not matter.

    Returns:
        `Attack`.

    Raises:
        ValueError: fewer than two scores, or one is nan.

    Source: Yeom et al., Privacy Risk in Machine Learning (2018), adversary 2.
    """
    members, others = (torch.as_tensor(scores, dtype=torch.float64) for scores in (members, others))
    for name, scores in (("members", members), ("others", others)):
        if scores.dim() != 1 or len(scores) < 2 or scores.isnan().any():
            raise ValueError(
                f"{name} of shape {tuple(scores.shape)}: two or more scores in one row, no nan, are needed"
            )
    known, unknown = members[::2].sort().values, others[::2].sort().values
    thresholds = torch.cat([known, unknown]).unique()
    tpr, fpr = (torch.searchsorted(own, thresholds, right=True) / len(own) for own in (known, unknown))
    best = thresholds[(tpr - fpr).argmax()]
    counts = [(int((scores <= best).sum()), len(scores)) for scores in (members[1::2], others[1::2])]
    return Attack(float(best), *counts[0], *counts[1])


def epsilon_lower_bound(attack, delta=0.0, confidence=0.95):
    """The least ε that a mechanism can have against which this attack succeeds so often, with the given confidence.

    Under (ε, δ)-DP every attack obeys  TPR ≤ e^ε · FPR + δ  and  1 − FPR ≤ e^ε · (1 − TPR) + δ. Rates are known from
    counts only: the lower end of TPR's and the upper end of FPR's Clopper–Pearson interval stand in for them.

    It is exact where every count is a run of its own: training anew with the sample, or without. Many samples of one
    run are no independent trials; for these see `epsilon_from_one_run`.

    Args:
        attack: `Attack`.
        delta: δ, at least 0 and below 1.
        confidence: the share of repetitions in which the bound is at or below the true ε, at least.

    Returns:
        A number of at least 0. Above the accountant's ε, one of the two is wrong, or the training is.

    Raises:
        ValueError: an argument is out of range.

    Source: Kairouz et al., The Composition Theorem for Differential Privacy (2015), theorem 2.1; Jagielski et al.,
    Auditing Differentially Private Machine Learning (2020), §3.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta!r}: a number of at least 0 and below 1 is needed")
    each = (1 + confidence) / 2  # two one-sided statements, which fail together at most as often as one by one
    tpr = at_least(attack.true_positives, attack.num_members, each)
    fnr, tnr = 1 - tpr, at_least(attack.num_others - attack.false_positives, attack.num_others, each)
    found = [(tpr - delta) / (1 - tnr), (tnr - delta) / fnr]
    return max(0.0, *(math.log(ratio) for ratio in found if ratio > 0))


def epsilon_from_one_run(num_correct, num_guesses, confidence=0.95):
    """The least ε from one training run, in which a fair coin had decided of each sample whether it is in.

    Under ε-DP (δ = 0) the number of right guesses, whatever the attack, is at most as large as a binomial one with
    probability e^ε / (1 + e^ε): all coins of a run can be used, although they are not independent once it is seen.

    Args:
        num_correct, num_guesses: right guesses, among those that the attack dared; how many it dares must not depend on
            whether they are right.
        confidence: as in `epsilon_lower_bound`.

    Returns:
        A number of at least 0.

    Raises:
        ValueError: an argument is out of range.

    Source: Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training Run (2023), the theorem for δ = 0.
    """
    right = at_least(num_correct, num_guesses, confidence)
    return max(0.0, math.log(right / (1 - right))) if right > 0 else 0.0


def at_least(successes, trials, confidence):
    """The probability that is at least there, with the given confidence: one side of Clopper and Pearson (1934).

    Raises:
        ValueError: not 0 ≤ successes ≤ trials with at least one trial, or confidence not between 0 and 1.
    """
    check_whole("trials", trials, 1)
    check_whole("successes", successes, 0)
    if successes > trials or not 0 < confidence < 1:
        raise ValueError(
            f"{successes=} of {trials=}, {confidence=}: at most all, and a number between 0 and 1, are needed"
        )
    return float(betaincinv(successes, trials - successes + 1, 1 - confidence)) if successes else 0.0
