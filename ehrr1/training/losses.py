"""Losses as pure functions: tensors in, the loss and sums to log out.

A policy loss is made of parts that are chosen one by one:

    loss = sum over tokens of  weight * (divergence - correction * gain)

- weight: how tokens are averaged (`completion_weights`, over all of an optimizer step at once);
- gain: what the policy is improved by (`_gain`: the clipped surrogate, or CISPO's);
- correction: for a rollout engine whose probabilities are not the trainer's (`engine_correction`);
- divergence: beta times an estimate of KL(policy || reference) (`kl_divergence`).

tests/test_losses.py holds them against TRL 1.16's GRPOTrainer. Where TRL does something else:

- Completions that are not counted (cut by the length limit) stay in TRL's denominators of `grpo`
  and `dr_grpo`; here they leave numerator and denominator.
- TRL's `bnpo` divides by the tokens of each micro-batch; here by those of the step: see
  `completion_weights`. Its `dapo` and `cispo` divide by the mean tokens of a step of the rollout;
  here by those of this step. That is the same where a rollout is learnt from in one step.
- TRL's `gspo` is written `grpo` at sequence level.
- TRL's `cispo` reads epsilon_high as the bound of the ratio; here the bound is 1 + epsilon_high, as
  in the paper and as for the other losses.
- TRL divides by (standard deviation + 1e-4); here by the standard deviation, and a group without
  signal has advantages of exactly 0. TRL leaves out a completion without a reward; here each has
  one.
- TRL multiplies k3 by the ratio unless `use_bias_correction_kl=False`. At token level and
  on-policy, where the ratio is 1, that has the gradient of k2 and the value of k3: choose k2 here.
- At sequence level TRL's clip ratios are means over completions; here over tokens, always.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")
LEVELS = ("token", "sequence")
DIVERGENCES = ("k1", "k2", "k3")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

FLAT = 1e-6
"""A group whose rewards' standard deviation is not above this teaches nothing."""


def supervised_loss(logprobs: Tensor, weights: Tensor, total: Tensor | float) -> Tensor:
    """Return the weighted negative log-likelihood of `logprobs` [N] with `weights` [N].

    `total` is the weight of the whole step.

    Dividing by the step's total, not by this batch's, makes the step's gradient the same however
    its trees are divided into batches.
    """
    return -(weights * logprobs).sum() / total


def advantages(rewards: Tensor, scale: str) -> Tensor:
    """Return advantages [groups, G] of `rewards` [groups, G]: minus the group's mean, scaled.

    - `group`: divided by the group's standard deviation (GRPO, arXiv 2402.03300, section 4.1.2);
    - `batch`: divided by that of all rewards ("Tricks or Traps?", 2508.08221);
    - `none`: not divided, so that easy and hard prompts do not weigh more than others
      (Dr. GRPO, 2503.20783).

    Standard deviations have Bessel's correction. A group whose rewards are all equal teaches
    nothing: its advantages are 0, exactly. Raises ValueError for a reward that is not finite: one
    would make all advantages nan while training goes on.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError("a reward is not finite")
    deviation = rewards.std(dim=1, keepdim=True)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    scales = {"group": deviation, "batch": rewards.std(), "none": torch.ones_like(deviation)}
    # equal rewards are not quite 0 when centred: their mean is rounded
    return torch.where(deviation > FLAT, centred / scales[scale], 0.0)


def completion_weights(
    loss: str, lengths: Tensor, counted: Tensor, max_completion_tokens: int
) -> Tensor:
    """Return the weight of each token of each completion [C], float64; 0 if it is not counted.

    Lengths [C] in tokens and counted [C] (bool) are those of ALL completions of one optimizer step
    over all processes. Summed over rows and processes with these weights the loss is the step's,
    however the step is cut into rows. This is the one place that averages:

    - `grpo` (arXiv 2402.03300, eq. 3) and `gspo` (2507.18071, eq. 5): the mean over completions of
      the mean over their tokens. A token of a short completion weighs more.
    - `dr_grpo` (2503.20783): the sum over tokens, divided by completions * `max_completion_tokens`,
      a constant: the weight of a token depends on no length.
    - `dapo` (2503.14476, eq. 8) and `cispo` (2506.13585, eq. 4): the mean over all tokens.
    - `bnpo`, as TRL names it: the mean over the tokens of the batch. TRL takes it micro-batch by
      micro-batch, so that the result depends on how a step is cut. Here the batch is the step, and
      so `bnpo` is the same as `dapo`.
    - a function of the user's (`module.function`): as `dapo`.

    Raises ValueError for an unknown loss.
    """
    tokens = lengths.double()
    completions = counted.sum().clamp(min=1)
    if loss in ("grpo", "gspo"):
        each = 1 / (tokens.clamp(min=1) * completions)
    elif loss == "dr_grpo":
        each = torch.ones_like(tokens) / (completions * max_completion_tokens)
    elif loss in ("dapo", "bnpo", "cispo") or "." in loss:
        each = torch.ones_like(tokens) / tokens[counted].sum().clamp(min=1)
    else:
        raise ValueError(f"no loss {loss!r}: one of {', '.join(LOSSES)}")
    return torch.where(counted, each, 0.0)


@dataclass(frozen=True)
class Tokens:
    """One entry for each completion token of a packed row, N in all; N may be 0.

    All tokens of a completion are in one row: a sequence's ratio needs them.
    """

    logprobs: Tensor
    """[N] with gradient: under the policy as it is now, at sampling temperature."""
    old: Tensor
    """[N] by the trainer, under the policy that made the rollout; where that is the policy as it is
    now (one update a rollout), `logprobs.detach()`."""
    advantages: Tensor
    """[N] of the token's completion."""
    completions: Tensor
    """[N] int64: the number of the token's completion in the row, from 0."""
    weights: Tensor
    """[N] from `completion_weights`; 0 leaves a token out of everything."""
    sampled: Tensor | None = None
    """[N] by the rollout engine, under the policy that made the rollout."""
    reference: Tensor | None = None
    """[N] under the reference weights; needed for beta > 0."""

    def counted(self) -> "Tokens":
        """Return the tokens with a weight; selected, not multiplied by 0, as 0 * inf is nan."""
        kept = self.weights > 0
        return Tokens(
            self.logprobs[kept],
            self.old[kept],
            self.advantages[kept].to(self.logprobs.dtype),
            self.completions[kept],
            self.weights[kept].to(self.logprobs.dtype),
            None if self.sampled is None else self.sampled[kept],
            None if self.reference is None else self.reference[kept],
        )


Gain = Callable[[Tensor, Tokens, "PolicySettings"], Tensor]
"""(ratio [N] of policy to old policy with gradient, tokens, settings) -> what is maximised [N]."""


@dataclass(frozen=True)
class PolicySettings:
    """The choice of loss; the names are those of the configuration group `rl`."""

    loss: str
    """One of `LOSSES`, or the path of a function that computes the gain (`gain`)."""
    level: str
    """Of the ratio, one of `LEVELS`; `gspo` is at sequence level whatever stands here."""
    epsilon: float
    """The ratio is bounded below by 1 - epsilon; `cispo` has no lower bound."""
    epsilon_high: float
    """The ratio is bounded above by 1 + epsilon_high; above epsilon: "clip-higher" of DAPO."""
    beta: float
    """Weight of the divergence from the reference."""
    kl: str
    """Its estimator, one of `DIVERGENCES`."""
    correction: str
    """For the rollout engine's probabilities, one of `CORRECTIONS`."""
    correction_cap: float
    """The largest correction, above 1."""
    gain: Gain | None = None
    """The function that `loss` names; None for one of `LOSSES`."""


class PolicyLoss(NamedTuple):
    """A row's part of the loss (a scalar with gradient), and sums to log.

    `sums` are detached sums over the row's counted tokens, under the same names for every row, to
    be added over rows and processes and divided by `tokens`: kl (by the estimator that was chosen;
    0 without a reference), ratio (of the policy to the old one), clipped_low and clipped_high
    (tokens whose advantage would push the ratio on beyond the bound where it already is), and of
    trainer and engine mismatch (difference of log-probabilities, absolute), mismatch_log (the same
    with its sign), mismatch_ratio (trainer's probability / engine's) and correction (what the gain
    was multiplied by).
    """

    loss: Tensor
    sums: dict[str, Tensor]


def policy_loss(tokens: Tokens, settings: PolicySettings) -> PolicyLoss:
    """Return the weighted sum over the row's tokens; 0 with gradient 0 if none is counted.

    Raises ValueError where log-probabilities that the settings need are missing.
    """
    if settings.beta > 0 and tokens.reference is None:
        raise ValueError("beta > 0 needs log-probabilities under the reference")
    if settings.correction != "none" and tokens.sampled is None:
        raise ValueError("a correction needs the rollout engine's log-probabilities")
    tokens = tokens.counted()
    ratio = _ratio(tokens, settings)
    correction = engine_correction(tokens, settings.correction, settings.correction_cap)
    per_token = -correction * _gain(ratio, tokens, settings)
    divergence = torch.zeros_like(per_token)
    if tokens.reference is not None:
        divergence = kl_divergence(tokens.logprobs, tokens.reference, settings.kl)
    if settings.beta > 0:
        per_token = per_token + settings.beta * divergence
    loss = (tokens.weights * per_token).sum()
    low, high = _clipped(ratio, tokens.advantages, settings)
    sampled = tokens.old if tokens.sampled is None else tokens.sampled
    watched = {
        "tokens": torch.ones_like(ratio),
        "kl": divergence,
        "ratio": ratio,
        "clipped_low": low,
        "clipped_high": high,
        "mismatch": (tokens.old - sampled).abs(),
        "mismatch_log": tokens.old - sampled,
        "mismatch_ratio": (tokens.old - sampled).exp(),
        "correction": correction,
    }
    return PolicyLoss(loss, {name: each.detach().sum() for name, each in watched.items()})


def _ratio(tokens: Tokens, settings: PolicySettings) -> Tensor:
    """Return the ratio of policy to old policy, with gradient [N].

    At sequence level it is the geometric mean over the completion's tokens, one number for all of
    them (GSPO, arXiv 2507.18071, eq. 7), and a token's gradient a share of its completion's.
    """
    difference = tokens.logprobs - tokens.old
    if settings.level == "sequence" or settings.loss == "gspo":
        sums, lengths = _by_completion(difference, tokens.completions)
        difference = sums / lengths
    return difference.exp()


def _gain(ratio: Tensor, tokens: Tokens, settings: PolicySettings) -> Tensor:
    """Return what is maximised, for each token [N].

    `cispo` (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): the bounded ratio, without gradient, times
    advantage times log-probability. Every token keeps a gradient; the bound only limits its weight.
    As in the paper's experiments there is no lower bound. The value means nothing.

    All others: the smaller of ratio and bounded ratio times advantage (PPO, 1707.06347, eq. 7),
    with bounds of their own for either side (DAPO, 2503.14476, eq. 8). A token beyond its bound has
    no gradient. A function of the user's replaces all of it.
    """
    if settings.gain is not None:
        return settings.gain(ratio, tokens, settings)
    high = 1 + settings.epsilon_high
    if settings.loss == "cispo":
        return ratio.detach().clamp(max=high) * tokens.advantages * tokens.logprobs
    bounded = ratio.clamp(1 - settings.epsilon, high)
    return torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages)


def _clipped(ratio: Tensor, advantages: Tensor, settings: PolicySettings) -> tuple[Tensor, Tensor]:
    """Return whether the lower and whether the upper bound clips a token; [N] bool each."""
    low = (ratio < 1 - settings.epsilon) & (advantages < 0)
    high = (ratio > 1 + settings.epsilon_high) & (advantages > 0)
    return (torch.zeros_like(low) if settings.loss == "cispo" else low), high


def kl_divergence(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Return an estimate of KL(policy || reference) for each token [N] that the policy sampled.

    With d = log(reference / policy) (Schulman, "Approximating KL divergence", 2020):

    - k1 = -d: unbiased, of large variance, may be negative.
    - k2 = d^2 / 2: biased, never negative.
    - k3 = exp(d) - d - 1: unbiased, never negative; that of GRPO (arXiv 2402.03300, eq. 4).

    A good value does not make a good gradient. In a loss it is, on average over on-policy tokens:

    - of k1 nothing: grad log policy, whose mean is 0. It adds noise and pulls nowhere: watch it,
      do not learn from it.
    - of k2 the gradient of KL(policy || reference).
    - of k3 the gradient of KL(reference || policy). Near the reference the two are alike.
    """
    d = reference - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return d.exp() - d - 1
    raise ValueError(f"no estimator {estimator!r}: one of {', '.join(DIVERGENCES)}")


def engine_correction(tokens: Tokens, correction: str, cap: float) -> Tensor:
    """Return the factor of each token's gain [N], without gradient: trainer / rollout engine.

    The engine samples from other probabilities than the trainer computes (other kernels, other
    precision): importance sampling makes up for it, bounded so that few tokens do not outweigh the
    rest (Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    2025; TRL's `vllm_importance_sampling_correction`). `token_*`: the ratio of each token's
    probabilities; `sequence_*`: that of its completion's, the product over tokens, for all of them.
    `*_truncate`: at most `cap`; `*_mask`: 0 where it is above `cap`. Such tokens still count where
    the loss is averaged.
    """
    if correction == "none" or tokens.sampled is None:
        return torch.ones_like(tokens.old)
    difference = tokens.old - tokens.sampled
    level, bound = correction.split("_")
    if level == "sequence":
        difference, _ = _by_completion(difference, tokens.completions)
    ratio = difference.exp()
    if bound == "truncate":
        return ratio.clamp(max=cap)
    return torch.where(ratio > cap, 0.0, ratio)


def _by_completion(values: Tensor, completions: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each token [N] the sum of its completion's values, and their number."""
    lengths = torch.bincount(completions)
    sums = values.new_zeros(len(lengths)).index_add(0, completions, values)
    return sums[completions], lengths[completions]
