"""Which history concepts are evidence for a target: lift, normalised PMI, Fisher's exact test."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import Cooccurrence


class Association(NamedTuple):
    """A history concept that goes with a target.

    support: joint samples; npmi: normalised pointwise mutual information, -1 to 1; p: Fisher's
    exact test, one-sided.
    """

    concept: Concept
    support: int
    lift: float
    npmi: float
    p: float


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """When a history concept h is evidence for a target t.

    n(h) >= min_count, n(t, h) >= min_support, lift(t, h) > min_lift, npmi(t, h) >= min_npmi, p <=
    max_p, and among the `top` highest lifts of the target. EHR-R1 uses 5, 1, 5, no bound, no bound
    and 20; a support of 1 can be the sample itself.
    """

    min_count: int
    min_support: int
    min_lift: float
    top: int
    min_npmi: float = -1.0
    max_p: float = 1.0


def associated(
    counts: Cooccurrence, target: str, concepts: Iterable[Concept], rule: EvidenceRule
) -> list[Association]:
    """Those of `concepts` that are evidence for `target`, highest lift first.

    Ties go to the larger support, then to the name, so that the same counts always give the same
    evidence. Empty for a target that no training sample has.
    """
    if target not in counts.targets:
        return []
    row = counts.targets[target]
    # As released a name is one concept: the first place where it stands is the one that is cited.
    places: dict[int, Concept] = {}
    for concept in concepts:
        column = counts.column(concept)
        if column is not None:
            places.setdefault(column, concept)
    known, columns = list(places.values()), np.array(list(places), dtype=np.int64)
    joint, lift = counts.row(row)[columns], counts.lifts(row, columns)
    enough = (counts.n_history[columns] >= rule.min_count) & (joint >= rule.min_support)
    kept = np.flatnonzero(enough & (lift > rule.min_lift))
    npmi, p = normalised_pmi(counts, row, columns[kept]), p_values(counts, row, columns[kept])
    found = [
        Association(known[i], int(joint[i]), float(lift[i]), float(npmi[n]), float(p[n]))
        for n, i in enumerate(kept)
        if npmi[n] >= rule.min_npmi and p[n] <= rule.max_p
    ]
    return sorted(found, key=lambda a: (-a.lift, -a.support, a.concept))[: rule.top]


def passing(counts: Cooccurrence, rule: EvidenceRule) -> int:
    """Count the pairs of a target and a history concept that are evidence, `top` aside."""
    eligible = np.flatnonzero(counts.n_history >= rule.min_count)
    found = 0
    for target in range(len(counts.targets)):
        enough = counts.row(target)[eligible] >= rule.min_support
        columns = eligible[enough & (counts.lifts(target, eligible) > rule.min_lift)]
        npmi, p = normalised_pmi(counts, target, columns), p_values(counts, target, columns)
        found += int(((npmi >= rule.min_npmi) & (p <= rule.max_p)).sum())
    return found


def normalised_pmi(
    counts: Cooccurrence, target: int, columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """log(lift) / -log(p(t, h)) of a target with each of these history concepts: 1 where the two
    always stand together, 0 where they are independent, -1 where never (Bouma 2009)."""
    share = counts.row(target)[columns] / counts.samples
    with np.errstate(divide="ignore", invalid="ignore"):
        npmi = np.log(counts.lifts(target, columns)) / -np.log(share)
    return np.where(share == 0, -1.0, np.where(share == 1, 1.0, npmi))


def p_values(counts: Cooccurrence, target: int, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fisher's exact test, one-sided: the probability of so many joint samples or more, were the
    target independent of each of these history concepts (hypergeometric)."""
    joint = counts.row(target)[columns].astype(np.int64)
    drawn, marked = int(counts.n_target[target]), counts.n_history[columns]
    p: NDArray[np.float64] = hypergeom.sf(joint - 1, counts.samples, marked, drawn)
    return p


def significance_bound(counts: Cooccurrence, min_count: int, max_fdr: float) -> float:
    """The largest p that keeps the expected share of false discoveries at `max_fdr`.

    Benjamini and Hochberg (1995) over all pairs of a target and a history concept with n(h) >=
    min_count. Pairs with a lift of at most 1 have a p near one half or above; they count among the
    tests and need no p of their own, as `max_fdr` is below that. 0.0: nothing is significant.
    """
    eligible = np.flatnonzero(counts.n_history >= min_count)
    tests = len(counts.targets) * len(eligible)
    found = [np.zeros(0)]
    for target in range(len(counts.targets)):
        columns = eligible[counts.lifts(target, eligible) > 1]
        found.append(p_values(counts, target, columns))
    ordered = np.sort(np.concatenate(found))
    passed = np.flatnonzero(ordered <= max_fdr * np.arange(1, len(ordered) + 1) / max(tests, 1))
    return float(ordered[passed[-1]]) if len(passed) else 0.0
