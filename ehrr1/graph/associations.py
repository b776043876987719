"""Select the history concepts that are evidence for a target.

The measures are lift with a confidence interval, the probability of the target given the concept,
normalised pointwise mutual information and Fisher's exact test.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import Cooccurrence

Z95 = 1.96
"""Standard normal quantile of a two-sided interval of 95 %."""

Own = Sequence[tuple[Set[str], Set[Concept]]]
"""The counted samples of one patient in a task: answer and history of each."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """The share of one patient in the counts of a task, whose history has H concepts.

    history [H]: whether the patient's samples show a concept; pairs: target -> the same of the
    samples with the target.
    """

    history: NDArray[np.bool_]
    pairs: Mapping[str, NDArray[np.bool_]]


def contribution(counts: Cooccurrence, own: Own) -> Contribution | None:
    """Return what a patient with these counted samples adds to `counts`; None without samples."""
    if not own:
        return None
    pairs: dict[str, set[Concept]] = {}
    for answer, history in own:
        for target in answer:
            pairs.setdefault(target, set()).update(history)
    every = set().union(*(history for _, history in own))
    return Contribution(
        _mark(counts, every), {target: _mark(counts, some) for target, some in pairs.items()}
    )


def _mark(counts: Cooccurrence, concepts: Iterable[Concept]) -> NDArray[np.bool_]:
    found = (counts.column(concept) for concept in concepts)
    marked = np.zeros(len(counts.history), dtype=np.bool_)
    marked[[column for column in found if column is not None]] = True
    return marked


@dataclass(frozen=True, slots=True)
class Candidates:
    """The C concepts of a context that a task has counted, and their columns [C]."""

    concepts: Sequence[Concept]
    columns: NDArray[np.int64]


def candidates(counts: Cooccurrence, concepts: Iterable[Concept]) -> Candidates:
    """Return those of `concepts` that were counted, each column once.

    In the counting of the release a name is a single concept; its first occurrence is the one that
    a chain cites.
    """
    places: dict[int, Concept] = {}
    for concept in concepts:
        column = counts.column(concept)
        if column is not None:
            places.setdefault(column, concept)
    return Candidates(list(places.values()), np.array(list(places), dtype=np.int64))


class Association(NamedTuple):
    """A history concept that is associated with a target.

    support: number of patients (`graph.counting=release`: samples) that have both; lift: n(t, h) *
    N / (n(t) * n(h)); lift_low: lower bound of its 95 % interval; probability: n(t, h) / n(h);
    npmi: normalised pointwise mutual information, from -1 to 1; p: p-value of Fisher's exact test,
    one-sided.
    """

    concept: Concept
    support: int
    lift: float
    lift_low: float
    probability: float
    npmi: float
    p: float


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """The criteria by which a history concept h is evidence for a target t.

    All of these must hold: n(h) >= min_count, n(t, h) >= min_support, lift(t, h) > min_lift, the
    lower bound of the lift's 95 % interval > min_lift_low, n(t, h) / n(h) >= min_probability,
    npmi(t, h) >= min_npmi and p <= max_p. Of an item in several states, the one with the highest
    lower bound is taken, the item without a state before others. h is among the `top` concepts of
    the target by this lower bound, in the counting of the release by lift: a lift alone ranks rare
    concepts first. EHR-R1 uses min_count 5, min_support 1, min_lift 5 and top 20, and no other
    bound.
    """

    min_count: int
    min_support: int
    min_lift: float
    top: int
    min_lift_low: float = 0.0
    min_probability: float = 0.0
    min_npmi: float = -1.0
    max_p: float = 1.0

    def admits(self, one: Association) -> bool:
        """Return whether a counted pair is evidence, ignoring `min_count` and `top`."""
        return (
            one.support >= self.min_support
            and one.lift > self.min_lift
            and one.lift_low > self.min_lift_low
            and one.probability >= self.min_probability
            and one.npmi >= self.min_npmi
            and one.p <= self.max_p
        )


@dataclass(frozen=True, slots=True)
class Margins:
    """The counts of a target and C history concepts.

    joint [C]: n(t, h); history [C]: n(h); target: n(t); units: N.
    """

    joint: NDArray[np.int64]
    history: NDArray[np.int64]
    target: int
    units: int

    def at(self, places: NDArray[np.int64]) -> "Margins":
        """Return the counts of some of the concepts."""
        return Margins(self.joint[places], self.history[places], self.target, self.units)


def margins(
    counts: Cooccurrence,
    target: str,
    columns: NDArray[np.int64],
    own: Contribution | None = None,
) -> Margins:
    """Return the counts of a target and the history concepts `columns` [C].

    The patient `own`, if given, is not counted.
    """
    row = counts.targets[target]
    joint = counts.row(row)[columns].astype(np.int64)
    history = counts.n_history[columns].astype(np.int64)
    alone = int(counts.n_target[row])
    if own is None:
        return Margins(joint, history, alone, counts.units)
    held = own.pairs.get(target)
    if held is not None:
        joint -= held[columns]
    return Margins(
        joint, history - own.history[columns], alone - (held is not None), counts.units - 1
    )


def associated(
    counts: Cooccurrence,
    target: str,
    shown: Candidates,
    rule: EvidenceRule,
    own: Contribution | None = None,
) -> list[Association]:
    """Return the concepts `shown` that are evidence for `target`, strongest first (`EvidenceRule`).

    `own` is what the patient whose graph is drawn adds to the counts; they are taken without it.
    Ties are broken by the larger support, then by the concept's name, so that the same counts
    always give the same evidence. The list is empty if no training patient has the target.
    """
    if target not in counts.targets:
        return []
    beside = margins(counts, target, shown.columns, own)
    kept = passing_places(beside, rule)
    if not len(kept):
        return []
    beside = beside.at(kept)
    measures = zip(
        beside.joint.tolist(),
        lifts(beside).tolist(),
        lower_bounds(beside).tolist(),
        probabilities(beside).tolist(),
        normalised_pmi(beside).tolist(),
        p_values(beside).tolist(),
        strict=True,
    )
    found = [Association(shown.concepts[i], *some) for i, some in zip(kept, measures, strict=True)]
    if counts.either:
        return sorted(found, key=lambda a: (-a.lift, -a.support, a.concept))[: rule.top]
    strongest = sorted(
        _one_state_each(found), key=lambda a: (-a.lift_low, -a.lift, -a.support, a.concept)
    )
    return strongest[: rule.top]


def likely(
    counts: Cooccurrence,
    shown: Candidates,
    rule: EvidenceRule,
    own: Contribution | None = None,
) -> dict[str, float]:
    """Return each target that some of the concepts `shown` is evidence for, with its probability.

    This is the highest n(t, h) / n(h) among them. `own` is as in `associated`. The targets are in
    the order of the counts.
    """
    history = counts.n_history[shown.columns].astype(np.int64)
    joint = counts.block(shown.columns)
    if own is not None:
        history -= own.history[shown.columns]
        for target, held in own.pairs.items():
            joint[counts.targets[target]] -= held[shown.columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        passed = joint / history >= rule.min_probability
    passed &= (history >= rule.min_count) & (joint >= max(rule.min_support, 1))
    names = list(counts.targets)
    found = {}
    for row in np.flatnonzero(passed.any(axis=1)).tolist():
        beside = margins(counts, names[row], shown.columns, own)
        kept = passing_places(beside, rule)
        if len(kept):
            found[names[row]] = float(probabilities(beside.at(kept)).max())
    return found


def _one_state_each(found: Iterable[Association]) -> list[Association]:
    """Return the strongest state of each item: a chain argues with an item once for an answer."""
    best: dict[tuple[str, str], Association] = {}
    for one in sorted(found, key=lambda a: (-a.lift_low, a.concept.state != "", a.concept.state)):
        best.setdefault((one.concept.kind, one.concept.name), one)
    return list(best.values())


def passing_places(beside: Margins, rule: EvidenceRule) -> NDArray[np.int64]:
    """Return the places of the concepts that are evidence by `rule`, ignoring `top`."""
    enough = (beside.history >= rule.min_count) & (beside.joint >= rule.min_support)
    places = np.flatnonzero(enough & (beside.joint > 0))
    some = beside.at(places)
    passed = (lifts(some) > rule.min_lift) & (probabilities(some) >= rule.min_probability)
    if rule.min_npmi > -1:
        passed &= normalised_pmi(some) >= rule.min_npmi
    places = places[passed]
    places = places[lower_bounds(beside.at(places)) > rule.min_lift_low]
    if rule.max_p == 1 or not len(places):  # every p-value passes, and they take most of the time
        return places
    return places[p_values(beside.at(places)) <= rule.max_p]


def passing(counts: Cooccurrence, rule: EvidenceRule) -> int:
    """Return the number of pairs that are evidence among all patients, ignoring `top`.

    Items in several states count once for each state.
    """
    every = counts.shown
    return sum(len(passing_places(margins(counts, one, every), rule)) for one in counts.targets)


def lifts(beside: Margins) -> NDArray[np.float64]:
    """Return n(t, h) * N / (n(t) * n(h)), shape [C]; nan if a count is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return beside.joint * float(beside.units) / (float(beside.target) * beside.history)


def lower_bounds(beside: Margins) -> NDArray[np.float64]:
    """Return the lower bound of the 95 % interval of the lift, shape [C].

    The lift is P(t | h) / P(t) and P(h | t) / P(h). The bound is the smaller of the two with
    Wilson's lower bound (1927) of the conditional probability, which also holds for small counts
    and shares of 0 and 1: two of two patients are less certain than twenty of twenty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        by_concept = wilson(beside.joint, beside.history) * beside.units / float(beside.target)
        by_target = wilson(beside.joint, beside.target) * beside.units / beside.history
    return np.minimum(by_concept, by_target)


def wilson(successes: NDArray[np.int64], trials: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Return Wilson's lower bound of a share at 95 %, shape of `successes`; nan without trials."""
    size = np.asarray(trials, dtype=np.float64)
    share = successes / size
    spread = Z95 * np.sqrt(share * (1 - share) / size + Z95**2 / (4 * size**2))
    low: NDArray[np.float64] = share + Z95**2 / (2 * size) - spread
    return low / (1 + Z95**2 / size)


def probabilities(beside: Margins) -> NDArray[np.float64]:
    """Return n(t, h) / n(h), the share of those with the concept that have the target, [C]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return beside.joint / beside.history


def normalised_pmi(beside: Margins) -> NDArray[np.float64]:
    """Return the normalised PMI of the target with each concept, shape [C].

    It is log(lift) / -log(p(t, h)) (Bouma 2009): 1 where the two always occur together, 0 where
    they are independent, -1 where they never occur together.
    """
    share = beside.joint / beside.units
    with np.errstate(divide="ignore", invalid="ignore"):
        npmi = np.log(lifts(beside)) / -np.log(share)
    return np.where(share == 0, -1.0, np.where(share == 1, 1.0, npmi))


def p_values(beside: Margins) -> NDArray[np.float64]:
    """Return the one-sided p-values of Fisher's exact test, shape [C].

    A p-value is the probability of at least the observed number of joint patients if the target
    were independent of the history concept (hypergeometric distribution).
    """
    p: NDArray[np.float64] = hypergeom.sf(
        beside.joint - 1, beside.units, beside.history, beside.target
    )
    return p


def significance_bound(counts: Cooccurrence, min_count: int, max_fdr: float) -> float:
    """Return the largest p-value that keeps the false discovery rate at or below `max_fdr`.

    This is the procedure of Benjamini and Hochberg (1995) over all pairs of a target and a history
    concept with n(h) >= min_count. Pairs with a lift of at most 1 have a p-value of about one half
    or more. They count among the tests, but their p-values are not computed, because `max_fdr` is
    smaller than that. Returns 0.0 if no pair is significant.
    """
    eligible = counts.shown[counts.n_history[counts.shown] >= min_count]
    tests = len(counts.targets) * len(eligible)
    found = [np.zeros(0)]
    for target in counts.targets:
        beside = margins(counts, target, eligible)
        found.append(p_values(beside.at(np.flatnonzero(lifts(beside) > 1))))
    ordered = np.sort(np.concatenate(found))
    passed = np.flatnonzero(ordered <= max_fdr * np.arange(1, len(ordered) + 1) / max(tests, 1))
    return float(ordered[passed[-1]]) if len(passed) else 0.0
