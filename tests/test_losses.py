"""The policy losses: against TRL's GRPOTrainer, by hand, and laws that hold for any step.

tests/trl_losses.json.gz is what TRL 1.16 computed: `python -m benchmarks.trl_losses` makes it.
"""

import gzip
import itertools
import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ehrr1.training.losses import (
    CORRECTIONS,
    DIVERGENCES,
    LEVELS,
    LOSSES,
    PolicySettings,
    Tokens,
    advantages,
    completion_weights,
    engine_correction,
    kl_divergence,
    policy_loss,
    supervised_loss,
)

PRECISE = 1e-12
"""Largest difference from TRL, relative; both in float64."""

PLAIN = PolicySettings("grpo", "token", 0.2, 0.2, 0.0, "k3", "none", 3.0)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def row(**values: list[float] | None) -> Tokens:
    """Tokens of one completion with old = 0, advantage and weight 1, but for what is given."""
    count = len(next(value for value in values.values() if value is not None))
    given = {name: double(value) for name, value in values.items() if value is not None}
    completions = given.pop("completions", torch.zeros(count)).long()
    standard = {"logprobs": torch.zeros(count).double(), "old": torch.zeros(count).double()}
    standard |= {"advantages": torch.ones(count).double(), "weights": torch.ones(count).double()}
    found = Tokens(**(standard | given), completions=completions)
    found.logprobs.requires_grad_()
    return found


def gradient(loss: Tensor, tokens: Tokens) -> Tensor:
    [found] = torch.autograd.grad(loss, tokens.logprobs)
    return found


# --- TRL


@cache
def trl_cases() -> list[dict[str, Any]]:
    path = Path(__file__).parent / "trl_losses.json.gz"
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def trl_step(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Lengths and counted [C] of the step's completions: of the rollout TRL learns the first."""
    count = len(case["now"])
    return torch.tensor(case["lengths"][:count]), ~torch.tensor(case["truncated"][:count])


def trl_weighs_more_by(case: dict[str, Any]) -> Tensor:
    """TRL's weight of each completion's tokens / ours [C]; how TRL differs, in one place.

    - `grpo` and `dr_grpo` (and `gspo`, which is TRL's grpo) count truncated completions.
    - `bnpo` takes the mean over tokens in each micro-batch, then the mean of these.
    - `dapo` and `cispo` divide by the tokens of the rollout / its steps, not by those of the step.
    """
    lengths, counted = trl_step(case)
    tokens = (lengths * counted).double()
    if case["loss"] in ("grpo", "gspo", "dr_grpo"):
        return counted.double().mean().expand(len(counted))
    if case["loss"] == "bnpo":
        each = tokens.view(case["micro_batches"], -1).sum(1).clamp(min=1) * case["micro_batches"]
        return (tokens.sum() / each).repeat_interleave(len(lengths) // case["micro_batches"])
    pairs = zip(case["lengths"], case["truncated"], strict=True)
    rollout = sum(length for length, cut in pairs if not cut)
    a_step = max(rollout, 1) * case["micro_batches"] / case["slices"]
    return (tokens.sum() / a_step).expand(len(lengths))


def trl_tokens(case: dict[str, Any]) -> Tokens:
    lengths, counted = trl_step(case)

    def flat(name: str) -> Tensor | None:
        rows = case[name]
        return None if rows is None else double([one for row in rows for one in row])

    longest = case["max_completion_tokens"]
    weights = completion_weights(case["loss"], lengths, counted, longest) * trl_weighs_more_by(case)
    now, old = flat("now"), flat("old")
    assert now is not None
    return Tokens(
        logprobs=now.requires_grad_(),
        old=now.detach() if old is None else old,
        # TRL's own: how it scales rewards is tested apart
        advantages=double(case["advantages"])[: len(lengths)].repeat_interleave(lengths),
        completions=torch.arange(len(lengths)).repeat_interleave(lengths),
        weights=weights.repeat_interleave(lengths),
        sampled=flat("sampled"),
        reference=flat("reference"),
    )


def trl_settings(case: dict[str, Any], kl: str = "k3") -> PolicySettings:
    """`epsilon_high` of cispo is TRL's - 1: TRL bounds the ratio itself by it."""
    names = ("loss", "level", "epsilon", "epsilon_high", "beta", "correction", "correction_cap")
    return PolicySettings(kl=kl, **{name: case[name] for name in names})


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_trls(loss: str) -> None:
    """A difference of losses is relative to the gradient's size where the loss itself is about 0:
    on-policy its terms cancel."""
    for case in (case for case in trl_cases() if case["loss"] == loss):
        tokens = trl_tokens(case)
        found = policy_loss(tokens, trl_settings(case))
        expected = double([one for row in case["gradient"] for one in row])
        size = expected.abs().sum().item()
        assert abs(found.loss.item() - case["loss_value"]) <= PRECISE * size, case
        if case["ratio_times_kl"]:  # TRL's default: k3's value, k2's gradient
            found = policy_loss(tokens, trl_settings(case, "k2"))
        worst = (gradient(found.loss, tokens) - expected).abs().max().item()
        assert worst <= PRECISE * expected.abs().max().item(), case


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_are_trls(loss: str) -> None:
    """Where TRL, too, takes the mean over tokens: not of clipping or correction by completion."""
    compared = set()
    for case in (case for case in trl_cases() if case["loss"] == loss and "metrics" in case):
        sums = policy_loss(trl_tokens(case), trl_settings(case)).sums
        means = {name: value / sums["tokens"].clamp(min=1) for name, value in sums.items()}
        names = {"kl": "kl", "sampling/sampling_logp_difference/mean": "mismatch"}
        if case["level"] == "token":
            names |= {"clip_ratio/low_mean": "clipped_low", "clip_ratio/high_mean": "clipped_high"}
            names |= {"cispo_clip_ratio": "clipped_high"}
        if case["correction"].startswith("token"):
            names["sampling/importance_sampling_ratio/mean"] = "correction"
        for theirs in names.keys() & case["metrics"].keys():
            expected = case["metrics"][theirs]
            # TRL counts in float32
            assert means[names[theirs]].item() == pytest.approx(expected, rel=1e-6), (theirs, case)
            compared.add(theirs)
    assert len(compared) >= (3 if loss in ("gspo", "cispo") else 5), compared


def test_advantages_are_trls() -> None:
    """But for the 1e-4 that TRL adds to a standard deviation, so that it divides by no 0."""
    for case in trl_cases():
        rewards = double(case["rewards"]).view(-1, case["group_size"])
        deviations = {
            "group": rewards.std(dim=1, keepdim=True),
            "batch": rewards.std(),
            "none": torch.tensor(math.inf),
        }
        damped = 1 / (1 + 1e-4 / deviations[case["scale"]])
        found = (advantages(rewards, case["scale"]) * damped).nan_to_num(nan=0.0)
        expected = double(case["advantages"]).view_as(rewards)
        assert torch.allclose(found, expected, rtol=PRECISE, atol=PRECISE), case


def test_trl_cases_cover_what_both_have() -> None:
    cases = trl_cases()
    assert len(cases) >= 200
    for names in itertools.product(LOSSES, CORRECTIONS, (True, False)):
        assert any((one["loss"], one["correction"], one["beta"] > 0) == names for one in cases)
    for loss, level in itertools.product(LOSSES, LEVELS):
        level = "sequence" if loss == "gspo" else level
        assert any((one["loss"], one["level"]) == (loss, level) for one in cases)
    for loss in LOSSES:
        some = [one for one in cases if one["loss"] == loss]
        assert {one["scale"] for one in some} == {"group", "batch", "none"}
        assert {one["micro_batches"] / one["slices"] for one in some} == {0.5, 1.0}
        assert any(any(one["truncated"]) for one in some)
        assert any(one["old"] is None for one in some)
        factors = torch.cat([trl_weighs_more_by(one) for one in some])
        assert (factors == 1).any() and (factors != 1).any()
        clipped = [policy_loss(trl_tokens(one), trl_settings(one)).sums for one in some]
        assert sum(one["clipped_high"] for one in clipped) > 0
        assert (sum(one["clipped_low"] for one in clipped) > 0) == (loss != "cispo")


# --- by hand


def test_supervised_loss_by_hand() -> None:
    logprobs, weights = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5])
    assert supervised_loss(logprobs, weights, 4).item() == pytest.approx(0.5)


def test_advantages_are_normalised() -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3], [0.2, 0.4, 0.9, 0.1]])
    found = advantages(rewards, "group")
    assert torch.allclose(found.mean(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(found[[0, 2]].std(1), torch.ones(2))
    centred = rewards - rewards.mean(1, keepdim=True)
    assert torch.allclose(advantages(rewards, "none"), centred, atol=1e-6)
    assert torch.allclose(advantages(rewards, "batch"), centred / rewards.std(), atol=1e-6)
    for scale in ("group", "batch", "none"):
        assert advantages(rewards, scale)[1].eq(0).all()
        # 0.1 + 0.2 is not quite 0.3: rounding is no signal
        assert advantages(double([0.1 + 0.2, 0.3, 0.3])[None], scale).eq(0).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        advantages(torch.tensor([[0.0, 1.0], [wrong, 0.0]]), "group")


def test_weights_by_hand() -> None:
    """Three completions, the second not counted: it is in no denominator."""
    lengths, counted = torch.tensor([2, 5, 4]), torch.tensor([True, False, True])
    expected = {
        "grpo": [1 / 4, 0, 1 / 8],
        "gspo": [1 / 4, 0, 1 / 8],
        "dr_grpo": [1 / 20, 0, 1 / 20],
        "dapo": [1 / 6, 0, 1 / 6],
        "bnpo": [1 / 6, 0, 1 / 6],
        "cispo": [1 / 6, 0, 1 / 6],
    }
    assert expected.keys() == set(LOSSES)
    for loss, values in expected.items():
        assert completion_weights(loss, lengths, counted, 10).tolist() == pytest.approx(values)
        assert completion_weights(loss, lengths, counted & False, 10).tolist() == [0, 0, 0]
        empty = completion_weights(loss, torch.tensor([0]), torch.tensor([True]), 10)
        assert empty.isfinite().all()
    with pytest.raises(ValueError, match="ppo"):
        completion_weights("ppo", lengths, counted, 10)


def test_loss_by_hand() -> None:
    """Ratios 1.5 and 0.5, clipped to 0.8..1.2: with advantage +1 the first is bounded, with -1
    the second (arXiv 1707.06347, figure 1)."""
    tokens = row(
        logprobs=[math.log(one) for one in (1.5, 0.5, 1.5, 0.5)],
        advantages=[1.0, 1.0, -1.0, -1.0],
        weights=[0.5, 0.25, 0.125, 1.0],
    )
    found = policy_loss(tokens, PLAIN)
    expected = -(0.5 * 1.2 + 0.25 * 0.5 + 0.125 * -1.5 + 1.0 * -0.8)
    assert found.loss.item() == pytest.approx(expected)
    assert gradient(found.loss, tokens).tolist() == pytest.approx([0.0, -0.125, 0.1875, 0.0])
    assert found.sums["clipped_low"] == found.sums["clipped_high"] == 1
    assert found.sums["ratio"].item() == pytest.approx(4.0) and found.sums["tokens"] == 4
    higher = policy_loss(tokens, replace(PLAIN, epsilon_high=0.4))
    assert higher.loss.item() == pytest.approx(expected - 0.5 * 0.2)


def test_cispo_by_hand() -> None:
    """Every token keeps the gradient of its log-probability; the ratio is bounded above only."""
    tokens = row(
        logprobs=[math.log(one) for one in (1.5, 0.5, 1.1)],
        advantages=[1.0, -1.0, 2.0],
        weights=[0.5, 1.0, 1.0],
    )
    found = policy_loss(tokens, replace(PLAIN, loss="cispo", epsilon_high=0.3))
    assert gradient(found.loss, tokens).tolist() == pytest.approx([-0.5 * 1.3, 0.5, -2.2])
    assert found.sums["clipped_high"] == 1 and found.sums["clipped_low"] == 0


@pytest.mark.parametrize("chosen", [replace(PLAIN, loss="gspo"), replace(PLAIN, level="sequence")])
def test_sequence_ratio_by_hand(chosen: PolicySettings) -> None:
    """The geometric mean over each completion: sqrt(1.5 * 0.54) = 0.9 and 1.5, which is bounded.
    A token's gradient is a share of its completion's."""
    tokens = row(
        logprobs=[math.log(1.5), math.log(1.5), math.log(0.54)],
        completions=[0.0, 3.0, 3.0],
        weights=[1.0, 0.25, 0.25],
    )
    found = policy_loss(tokens, chosen)
    assert found.loss.item() == pytest.approx(-(1.2 + 0.5 * 0.9))
    assert gradient(found.loss, tokens).tolist() == pytest.approx([0.0, -0.225, -0.225])
    assert found.sums["clipped_high"] == 1


def test_divergences_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, -2.0])
    values = {"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) - 0.5}
    gradients = {"k1": [1.0, 1.0], "k2": [0.5, 0.0], "k3": [1 - math.exp(-0.5), 0.0]}
    assert values.keys() == gradients.keys() == set(DIVERGENCES)
    for estimator in DIVERGENCES:
        found = kl_divergence(logprobs, reference, estimator)
        assert found.tolist() == pytest.approx([values[estimator], 0.0])
        [slope] = torch.autograd.grad(found.sum(), logprobs)
        assert slope.tolist() == pytest.approx(gradients[estimator])
    with pytest.raises(ValueError, match="k4"):
        kl_divergence(logprobs, reference, "k4")


def test_what_the_divergences_estimate() -> None:
    """Over all tokens of a vocabulary: k1 and k3 are right on average, k2's mean gradient is that
    of KL(policy || reference), k3's that of KL(reference || policy), k1's is 0."""
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.2, -0.7, 0.1], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    forward = (policy.exp() * (policy - reference)).sum()
    backward = (reference.exp() * (reference - policy)).sum()

    def slope(value: Tensor) -> Tensor:
        [found] = torch.autograd.grad(value, logits, retain_graph=True)
        return found

    def estimated(estimator: str) -> Tensor:
        return (policy.detach().exp() * kl_divergence(policy, reference, estimator)).sum()

    assert estimated("k1").item() == pytest.approx(forward.item())
    assert estimated("k3").item() == pytest.approx(forward.item())
    assert torch.allclose(slope(estimated("k1")), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(slope(estimated("k2")), slope(forward))
    assert torch.allclose(slope(estimated("k3")), slope(backward))
    assert not torch.allclose(slope(forward), slope(backward), rtol=0.1)


def test_divergence_pulls_towards_the_reference() -> None:
    tokens = row(logprobs=[-1.0, -2.0], old=[-1.0, -2.0], advantages=[0.0, 0.0],
                 reference=[-1.5, -2.0])  # fmt: skip
    found = policy_loss(tokens, replace(PLAIN, beta=0.1))
    assert found.loss.item() == pytest.approx(0.1 * (math.exp(-0.5) - 0.5))
    slope = gradient(found.loss, tokens)
    assert slope[0] > 0 and slope[1] == 0
    watched = policy_loss(tokens, PLAIN)  # with beta = 0 it is watched, not learnt from
    assert watched.sums["kl"] == found.sums["kl"] > 0
    assert gradient(watched.loss, tokens).eq(0).all()


def test_corrections_by_hand() -> None:
    """Trainer / engine: 2 and 1/2 in the first completion, 2 in the second; at most 1.5."""
    tokens = row(
        sampled=[-math.log(2), math.log(2), -math.log(2)],
        completions=[0.0, 0.0, 1.0],
        weights=[1.0, 1.0, 2.0],
    )
    expected = {
        "none": [1.0, 1.0, 1.0],
        "token_truncate": [1.5, 0.5, 1.5],
        "token_mask": [0.0, 0.5, 0.0],
        "sequence_truncate": [1.0, 1.0, 1.5],
        "sequence_mask": [1.0, 1.0, 0.0],
    }
    assert expected.keys() == set(CORRECTIONS)
    for correction, values in expected.items():
        assert engine_correction(tokens, correction, 1.5).tolist() == pytest.approx(values)
        found = policy_loss(tokens, replace(PLAIN, correction=correction, correction_cap=1.5))
        assert found.loss.item() == pytest.approx(-(values[0] + values[1] + 2 * values[2]))
        assert found.sums["correction"].item() == pytest.approx(sum(values))
        assert found.sums["mismatch"].item() == pytest.approx(3 * math.log(2))
        assert found.sums["mismatch_ratio"].item() == pytest.approx(4.5)


def test_the_divergence_is_not_corrected() -> None:
    tokens = row(logprobs=[0.0], sampled=[-5.0], reference=[-1.0])
    chosen = replace(PLAIN, beta=1.0, correction="token_mask")
    assert policy_loss(tokens, chosen).loss.item() == pytest.approx(math.exp(-1))


def test_what_the_settings_need_must_be_there() -> None:
    with pytest.raises(ValueError, match="reference"):
        policy_loss(row(logprobs=[0.0]), replace(PLAIN, beta=0.1))
    with pytest.raises(ValueError, match="engine"):
        policy_loss(row(logprobs=[0.0]), replace(PLAIN, correction="token_mask"))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_tokens_has_a_gradient_of_zero(loss: str) -> None:
    """Rows fill up where a process has fewer: its backward pass must run, its names be there."""
    chosen = replace(PLAIN, loss=loss, beta=0.1, correction="sequence_mask")
    full = row(logprobs=[-1.0, -2.0], sampled=[-1.0, -1.0], reference=[-1.0, -1.0])
    for tokens in (replace(full, weights=torch.zeros(2)), picked(full, torch.zeros(2).bool())):
        found = policy_loss(tokens, chosen)
        assert found.loss == 0 and gradient(found.loss, full).eq(0).all()
        assert found.sums.keys() == policy_loss(full, chosen).sums.keys()
        assert all(value == 0 for value in found.sums.values())


def test_precision_is_that_of_the_log_probabilities() -> None:
    tokens = row(logprobs=[-1.0], old=[-1.1])
    single = replace(tokens, logprobs=tokens.logprobs.float(), old=tokens.old.float())
    assert single.weights.dtype == torch.float64  # as from completion_weights
    assert policy_loss(single, PLAIN).loss.dtype == torch.float32


# --- laws


@dataclass(frozen=True)
class Step:
    """A random optimizer step; `tokens` all of it as one row."""

    settings: PolicySettings
    lengths: Tensor
    counted: Tensor
    tokens: Tokens


@st.composite
def steps(draw: st.DrawFn, losses: tuple[str, ...] = LOSSES) -> Step:
    lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    flags = st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))
    counted = torch.tensor(draw(flags))
    chosen = PolicySettings(
        loss=draw(st.sampled_from(losses)),
        level=draw(st.sampled_from(LEVELS)),
        epsilon=draw(st.sampled_from([0.1, 0.2])),
        epsilon_high=draw(st.sampled_from([0.1, 0.3])),
        beta=draw(st.sampled_from([0.0, 0.1])),
        kl=draw(st.sampled_from(DIVERGENCES)),
        correction=draw(st.sampled_from(CORRECTIONS)),
        correction_cap=draw(st.sampled_from([1.2, 2.0])),
    )
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=source, dtype=torch.float64)

    count = int(lengths.sum())
    now = normal(count) - 3
    old = now + normal(count) / 4
    weights = completion_weights(chosen.loss, lengths, counted, 8)
    tokens = Tokens(
        logprobs=now.requires_grad_(),
        old=old.detach(),
        advantages=normal(len(lengths)).repeat_interleave(lengths),
        completions=torch.arange(len(lengths)).repeat_interleave(lengths),
        weights=weights.repeat_interleave(lengths),
        sampled=(old + normal(count) / 4).detach(),
        reference=(now + normal(count) / 2).detach(),
    )
    return Step(chosen, lengths, counted, tokens)


def picked(tokens: Tokens, kept: Tensor) -> Tokens:
    """Some of the tokens, as a row; log-probabilities stay those of the whole step."""
    assert tokens.sampled is not None and tokens.reference is not None
    return Tokens(
        tokens.logprobs[kept],
        tokens.old[kept],
        tokens.advantages[kept],
        tokens.completions[kept].unique(return_inverse=True)[1],
        tokens.weights[kept],
        tokens.sampled[kept],
        tokens.reference[kept],
    )


laws = settings(max_examples=60, deadline=None)


@laws
@given(steps(), st.data())
def test_a_step_may_be_cut_into_rows_anyhow(step: Step, data: st.DataObject) -> None:
    count = len(step.lengths)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    whole = policy_loss(step.tokens, step.settings)
    parts = [
        policy_loss(picked(step.tokens, (rows == number)[step.tokens.completions]), step.settings)
        for number in range(3)
    ]
    total = torch.stack([part.loss for part in parts]).sum()
    assert torch.allclose(total, whole.loss, rtol=1e-12, atol=1e-14)
    cut, uncut = gradient(total, step.tokens), gradient(whole.loss, step.tokens)
    assert torch.allclose(cut, uncut, rtol=1e-12, atol=1e-14)
    for name, value in whole.sums.items():
        found = sum(part.sums[name] for part in parts)
        assert torch.allclose(torch.as_tensor(found), value, rtol=1e-12, atol=1e-12), name


@laws
@given(steps(), st.sampled_from([math.nan, math.inf, -math.inf, 1e6]))
def test_completions_not_counted_have_no_influence(step: Step, anything: float) -> None:
    out = ~step.counted[step.tokens.completions]
    whole = policy_loss(step.tokens, step.settings)
    names = ("old", "advantages", "sampled", "reference")
    spoilt = replace(step.tokens, **{
        name: torch.where(out, anything, getattr(step.tokens, name)) for name in names
    })  # fmt: skip
    other = policy_loss(spoilt, step.settings)
    assert torch.equal(other.loss, whole.loss)
    slope = gradient(other.loss, step.tokens)
    assert torch.equal(slope, gradient(whole.loss, step.tokens)) and slope[out].eq(0).all()
    assert all(torch.equal(other.sums[name], whole.sums[name]) for name in whole.sums)
    # nor have they on the others' weights
    alone = torch.ones(int(step.counted.sum()), dtype=torch.bool)
    weights = completion_weights(step.settings.loss, step.lengths[step.counted], alone, 8)
    assert torch.equal(
        weights, completion_weights(step.settings.loss, step.lengths, step.counted, 8)[step.counted]
    )


@laws
@given(
    steps(("gspo",)),
    st.integers(0, 2**32),
    st.sampled_from(["none", "sequence_truncate", "sequence_mask"]),
)
def test_gspo_is_grpo_where_a_completions_ratios_are_equal(
    step: Step, seed: int, correction: str
) -> None:
    source = torch.Generator().manual_seed(seed)
    shift = torch.randn(len(step.lengths), generator=source, dtype=torch.float64) / 4
    old = (step.tokens.logprobs - shift[step.tokens.completions]).detach()
    tokens = replace(step.tokens, old=old)
    # by token a correction makes a completion's tokens differ again
    chosen = replace(step.settings, correction=correction)
    gspo = policy_loss(tokens, chosen).loss
    grpo = policy_loss(tokens, replace(chosen, loss="grpo", level="token")).loss
    assert torch.allclose(gspo, grpo, rtol=1e-12, atol=1e-14)
    assert torch.allclose(gradient(gspo, tokens), gradient(grpo, tokens), rtol=1e-9, atol=1e-14)


@laws
@given(steps())
def test_on_policy_all_are_the_policy_gradient(step: Step) -> None:
    """With a ratio of 1 nothing is clipped: the gradient is - weight * advantage, whatever loss."""
    tokens = replace(step.tokens, old=step.tokens.logprobs.detach())
    chosen = replace(step.settings, beta=0.0, correction="none")
    found = policy_loss(tokens, chosen)
    expected = -(tokens.weights * tokens.advantages)
    assert torch.allclose(gradient(found.loss, tokens), expected, rtol=1e-12, atol=1e-14)
    assert found.sums["clipped_low"] == found.sums["clipped_high"] == 0
    assert found.sums["ratio"] == found.sums["tokens"]


@laws
@given(steps())
def test_weights_are_a_mean(step: Step) -> None:
    """Those of a mean sum up to 1; with equally long completions all means are the same."""
    lengths, counted = step.lengths, step.counted
    some = float(counted.any())
    for loss in ("grpo", "gspo", "dapo", "bnpo", "cispo"):
        found = completion_weights(loss, lengths, counted, 8)
        assert (found * lengths).sum().item() == pytest.approx(some)
        assert torch.equal(found > 0, counted)
        equal = completion_weights(loss, torch.full_like(lengths, 4), counted, 8)
        half = completion_weights("dr_grpo", torch.full_like(lengths, 4), counted, 8)
        assert torch.allclose(equal, 2 * half)


@laws
@given(steps())
def test_tokens_beyond_their_bound_have_no_gradient(step: Step) -> None:
    """At token level and without divergence, for all but cispo; all others have one."""
    chosen = replace(step.settings, level="token", beta=0.0, correction="none")
    tokens = step.tokens
    slope = gradient(policy_loss(tokens, chosen).loss, tokens)
    ratio = (tokens.logprobs - tokens.old).exp()
    beyond = (ratio > 1 + chosen.epsilon_high) & (tokens.advantages > 0)
    beyond |= (ratio < 1 - chosen.epsilon) & (tokens.advantages < 0)
    counted = step.counted[tokens.completions]
    if chosen.loss == "cispo":
        beyond = torch.zeros_like(beyond)
    if chosen.loss != "gspo":
        assert torch.equal(slope != 0, counted & ~beyond)
