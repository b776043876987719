"""Select the history concepts that are evidence for a target.

The measures are lift, normalised pointwise mutual information and Fisher's exact test.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import Cooccurrence


class Association(NamedTuple):
    """A history concept that is associated with a target.

    support: number of samples that have both; lift: n(t, h) * N / (n(t) * n(h)); npmi: normalised
    pointwise mutual information, from -1 to 1; p: p-value of Fisher's exact test, one-sided.
    """

    concept: Concept
    support: int
    lift: float
    npmi: float
    p: float


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """The criteria by which a history concept h is evidence for a target t.

    All of these must hold: n(h) >= min_count, n(t, h) >= min_support, lift(t, h) > min_lift,
    npmi(t, h) >= min_npmi, p <= max_p, and h is among the `top` concepts of the target by lift.
    EHR-R1 uses min_count 5, min_support 1, min_lift 5 and top 20, and does not bound npmi or p.
    With a support of 1, the only joint sample may be the sample that the graph is drawn for.
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
    """Return those of `concepts` that are evidence for `target`, highest lift first.

    Ties are broken by the larger support, then by the concept's name, so that the same counts
    always give the same evidence. The list is empty if no training sample has the target.
    """
    if target not in counts.targets:
        return []
    row = counts.targets[target]
    # In the released counting a name is a single concept; its first occurrence is the one that a
    # chain cites.
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
    """Return the number of (target, history concept) pairs that are evidence, ignoring `top`."""
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
    """Return the normalised PMI of a target with each of the history concepts `columns` [C].

    It is log(lift) / -log(p(t, h)) (Bouma 2009): 1 where the two always occur together, 0 where
    they are independent, -1 where they never occur together. The result has shape [C].
    """
    share = counts.row(target)[columns] / counts.samples
    with np.errstate(divide="ignore", invalid="ignore"):
        npmi = np.log(counts.lifts(target, columns)) / -np.log(share)
    return np.where(share == 0, -1.0, np.where(share == 1, 1.0, npmi))


def p_values(counts: Cooccurrence, target: int, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the one-sided p-values of Fisher's exact test for a target and `columns` [C].

    A p-value is the probability of at least the observed number of joint samples if the target were
    independent of the history concept (hypergeometric distribution). The result has shape [C].
    """
    joint = counts.row(target)[columns].astype(np.int64)
    drawn, marked = int(counts.n_target[target]), counts.n_history[columns]
    p: NDArray[np.float64] = hypergeom.sf(joint - 1, counts.samples, marked, drawn)
    return p


def significance_bound(counts: Cooccurrence, min_count: int, max_fdr: float) -> float:
    """Return the largest p-value that keeps the false discovery rate at or below `max_fdr`.

    This is the procedure of Benjamini and Hochberg (1995) over all pairs of a target and a history
    concept with n(h) >= min_count. Pairs with a lift of at most 1 have a p-value of about one half
    or more. They count among the tests, but their p-values are not computed, because `max_fdr` is
    smaller than that. Returns 0.0 if no pair is significant.
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
