"""Losses as pure functions: tensors in, loss and what to watch out."""

from typing import NamedTuple

import torch
from torch import Tensor


def supervised_loss(logprobs: Tensor, weights: Tensor, total: Tensor | float) -> Tensor:
    """Weighted negative log-likelihood: logprobs, weights [N]; `total` the whole step's weight.

    Dividing by the step's total, not by this batch's, makes the step's gradient the same however
    its trees are divided into batches.
    """
    return -(weights * logprobs).sum() / total


def group_advantages(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Rewards [groups, G] -> advantages [groups, G]: (r - mean) / standard deviation, by group.

    Shao et al., "DeepSeekMath" (arXiv 2402.03300), outcome supervision. A group whose rewards are
    all equal teaches nothing: its advantages are 0. Raises ValueError for a reward that is not
    finite: one would make all advantages nan while training goes on.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    deviation = rewards.std(dim=1, keepdim=True, unbiased=True)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return torch.where(deviation > epsilon, centred / (deviation + epsilon), 0.0)


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """An unbiased, never negative estimate of KL(policy || reference) for each token [N].

    Schulman, "Approximating KL divergence" (2020), estimator k3; as in arXiv 2402.03300, eq. 4.
    """
    difference = reference - logprobs
    return difference.exp() - difference - 1


class PolicyLoss(NamedTuple):
    """The loss (a scalar with gradient) and sums over the counted tokens."""

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def grpo_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    epsilon: float,
    beta: float = 0.0,
    reference: Tensor | None = None,
) -> PolicyLoss:
    """The clipped surrogate of GRPO (arXiv 2402.03300, eq. 3; clipping as in PPO, 1707.06347).

    All inputs are [N], one entry a completion token: its log-probability now, under the policy
    that sampled it, its completion's advantage, and its weight. The loss is the weighted sum; with
    weights 1 / (tokens of the completion * completions counted) it is the paper's mean over
    completions of the mean over tokens. Weight 0 leaves a token out, of the numerator here and of
    the denominator where the caller counts. `beta` > 0 adds the divergence from `reference`.
    """
    ratio = (logprobs - old).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    counted = weights > 0
    divergence = torch.zeros_like(logprobs)
    if beta > 0:
        assert reference is not None
        divergence = kl_k3(logprobs, reference)
    loss = -(weights * (gain - beta * divergence)).sum()
    clipped = ((bounded * advantages < ratio * advantages) & counted).sum()
    return PolicyLoss(loss, clipped, (divergence * counted).sum().detach())
