"""Statistics of the graphs of a run: coverage, path lengths, edges by relation."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean, median
from typing import Any

from ehrr1.graph.associations import EvidenceRule, Own
from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import Cooccurrence
from ehrr1.graph.evidence import answers, covered, explained, from_json


class Tally:
    """Metrics of graphs.jsonl, accumulated line by line."""

    def __init__(self) -> None:
        self.covered: dict[str, list[float]] = defaultdict(list)
        self.explained: dict[str, list[float]] = defaultdict(list)
        self.of_split: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.probability: dict[str, list[float]] = defaultdict(list)
        self.evidence: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self.holding: Counter[str] = Counter()
        self.lengths: dict[str, list[int]] = defaultdict(list)
        self.same: Counter[str] = Counter()
        self.edges: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one line of graphs.jsonl."""
        task, graph = row["task"], from_json(row["graph"])
        self.covered[task].append(covered(graph))
        self.explained[task].append(explained(graph))
        self.of_split[task, row["split"]].append(covered(graph))
        evidence = [edge for found in answers(graph).values() for _, edge in found]
        self.evidence[task] += len(evidence)
        self.probability[task] += [edge["probability"] for edge in evidence]
        if row["holding"] is not None:
            self.checked[task] += len(evidence)
            self.holding[task] += row["holding"]
        self.lengths[task] += [edge["hops"] for edge in evidence if "hops" in edge]
        self.same[task] += sum("same_concept" in edge for edge in evidence)
        for _, _, edge in graph.edges(data=True):
            self.edges[edge["relation"] if edge["kind"] == "knowledge" else edge["kind"]] += 1

    def metrics(self) -> dict[str, float | int]:
        """Return the metrics of all lines added so far.

        `samples/<task>`; `coverage/<task>`, the share of samples with any evidence;
        `answers/<task>`, the mean share of a sample's answers that have evidence; the same two of
        each split as `coverage_<split>/<task>` and `answers_<split>/<task>`; `explained/<task>`,
        the mean share of the answers that have evidence or another reason; `evidence/<task>`, the
        number of pairs of a concept and an answer; `probability/<task>`, the median over these
        pairs of P(answer | concept) among other patients, and `probability` over all tasks;
        `without_own/<task>`, the share of the pairs of training samples that are evidence without
        the sample's own patient (only where patients are counted); `paths/<task>`, the share of
        the pairs with a path, and `path_length/<task>`, its mean number of relations (both only if
        there are paths); `same_concept/<task>`, the share of these pairs that are one concept of
        the dictionary (only if there are any), which is no path; `edges/<relation>`, the number of
        edges.
        """
        found: dict[str, float | int] = {}
        for task, shares in sorted(self.covered.items()):
            found[f"samples/{task}"] = len(shares)
            found[f"coverage/{task}"] = mean(share > 0 for share in shares)
            found[f"answers/{task}"] = mean(shares)
            found[f"explained/{task}"] = mean(self.explained[task])
            found[f"evidence/{task}"] = self.evidence[task]
            if probabilities := self.probability[task]:
                found[f"probability/{task}"] = median(probabilities)
            if checked := self.checked[task]:
                found[f"without_own/{task}"] = self.holding[task] / checked
            if lengths := self.lengths[task]:
                found[f"paths/{task}"] = len(lengths) / self.evidence[task]
                found[f"path_length/{task}"] = mean(lengths)
            if self.same[task]:
                found[f"same_concept/{task}"] = self.same[task] / self.evidence[task]
        for (task, split), shares in sorted(self.of_split.items()):
            found[f"coverage_{split}/{task}"] = mean(share > 0 for share in shares)
            found[f"answers_{split}/{task}"] = mean(shares)
        if every := [one for some in self.probability.values() for one in some]:
            found["probability"] = median(every)
        return found | {f"edges/{name}": count for name, count in sorted(self.edges.items())}


def holds_without(
    counts: Cooccurrence, rule: EvidenceRule, target: str, concept: Concept, own: Own
) -> bool:
    """Return whether a concept is evidence for a target without one patient's samples `own`.

    It recounts the pair by plain sums, apart from the code that draws graphs, to check that code:
    n(h), n(t, h), lift and probability must be those that `rule` requires.
    """
    if target not in counts.targets or concept not in counts.history:
        return False
    with_target = int(counts.n_target[counts.targets[target]])
    with_concept = int(counts.n_history[counts.history[concept]])
    both, patients = counts.support(target, concept), counts.units
    if own:
        with_target -= any(target in answer for answer, _ in own)
        with_concept -= any(concept in history for _, history in own)
        both -= any(target in answer and concept in history for answer, history in own)
        patients -= 1
    return (
        with_concept >= rule.min_count
        and both >= rule.min_support
        and both * patients > rule.min_lift * with_target * with_concept
        and both >= rule.min_probability * with_concept
    )


def linked_shares(history: Iterable[Concept], ids: Mapping[str, str]) -> dict[str, float]:
    """Return `linked/<kind>`, the share of distinct names of a table or class that are linked.

    The share is 0 without a dictionary.
    """
    names = {one._replace(state="") for one in history if one.is_shown and not one.is_text}
    seen = Counter(concept.kind for concept in names)
    linked = Counter(concept.kind for concept in names if concept.name in ids)
    return {f"linked/{kind}": linked[kind] / seen[kind] for kind in sorted(seen)}
