"""Statistics of the graphs of a run: coverage, path lengths, edges by relation."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from ehrr1.graph.concepts import Concept
from ehrr1.graph.evidence import answers, covered, from_json


class Tally:
    """Metrics of graphs.jsonl, accumulated line by line."""

    def __init__(self) -> None:
        self.covered: dict[str, list[float]] = defaultdict(list)
        self.evidence: Counter[str] = Counter()
        self.lengths: dict[str, list[int]] = defaultdict(list)
        self.same: Counter[str] = Counter()
        self.edges: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one line of graphs.jsonl."""
        task, graph = row["task"], from_json(row["graph"])
        self.covered[task].append(covered(graph))
        evidence = [edge for found in answers(graph).values() for _, edge in found]
        self.evidence[task] += len(evidence)
        self.lengths[task] += [edge["hops"] for edge in evidence if "hops" in edge]
        self.same[task] += sum("same_concept" in edge for edge in evidence)
        for _, _, edge in graph.edges(data=True):
            self.edges[edge["relation"] if edge["kind"] == "knowledge" else edge["kind"]] += 1

    def metrics(self) -> dict[str, float | int]:
        """Return the metrics of all lines added so far.

        `samples/<task>`; `coverage/<task>`, the share of samples with any evidence;
        `answers/<task>`, the mean share of a sample's answers that have evidence;
        `evidence/<task>`, the number of pairs of a concept and an answer; `paths/<task>`, the share
        of these pairs with a path, and `path_length/<task>`, its mean number of relations (both
        only if there are paths); `same_concept/<task>`, the share of these pairs that are one
        concept of the dictionary (only if there are any), which is no path; `edges/<relation>`, the
        number of edges.
        """
        found: dict[str, float | int] = {}
        for task, shares in sorted(self.covered.items()):
            found[f"samples/{task}"] = len(shares)
            found[f"coverage/{task}"] = mean(share > 0 for share in shares)
            found[f"answers/{task}"] = mean(shares)
            found[f"evidence/{task}"] = self.evidence[task]
            if lengths := self.lengths[task]:
                found[f"paths/{task}"] = len(lengths) / self.evidence[task]
                found[f"path_length/{task}"] = mean(lengths)
            if self.same[task]:
                found[f"same_concept/{task}"] = self.same[task] / self.evidence[task]
        return found | {f"edges/{name}": count for name, count in sorted(self.edges.items())}


def linked_shares(history: Iterable[Concept], ids: Mapping[str, str]) -> dict[str, float]:
    """Return `linked/<kind>`, the share of distinct names of a table or class that are linked.

    The share is 0 without a dictionary.
    """
    names = {concept for concept in history if not concept.is_text}
    seen = Counter(concept.kind for concept in names)
    linked = Counter(concept.kind for concept in names if concept.name in ids)
    return {f"linked/{kind}": linked[kind] / seen[kind] for kind in sorted(seen)}
