"""Do evidence edges find the causes that the synthetic hospital has planted?

    python run.py stage=prepare data.subjects=1500 output_root=DIR
    python run.py stage=graph data.subjects=1500 output_root=DIR graph.min_lift=1.5
    python -m benchmarks.planted_evidence DIR/demo/prepare DIR/demo/graph [--labs]

`synthetic/links.parquet` says which signs (a drug, an order, an infusion) each hidden condition or
problem causes, and which diagnosis is its name. Asked are the answers of diagnosis tasks that are
such a name. An edge to one is right if its concept is a planted sign of it or the diagnosis itself,
as an earlier stay has it; a drug that is prescribed stands in emar and pyxis by the same name.
Classes (ATC, CCS) are left out: no class is planted. A planted cause is what of it a context shows.
The file does not name the laboratory results that a condition or problem shifts. With `--labs` they
are planted causes, too: the test with a high (low) result, if the shift is upward (downward).
Otherwise laboratory results in a state are left out.

precision: the share of edges that are right, of the first K for each answer; recall: the share of
planted causes with an edge; chance: the precision of as many concepts drawn from the same contexts.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrr1.graph.concepts import Concept, event_concepts, occurrences
from ehrr1.graph.evidence import answers, from_json
from ehrr1.graph.states import HIGH, LOW
from ehrr1.synthetic.codes import DIAGNOSIS_TITLES
from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.labs import TEST_INDEX, TESTS
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.tasks.samples import Prepared

TASKS = ("diagnoses_icd", "diagnosis")

Planted = dict[str, set[str]]
"""Each diagnosis and the names of the signs that its condition or problem causes, and its own."""


@dataclass
class Found:
    """Counts over the samples of a task."""

    edges: int = 0
    right: int = 0
    planted: int = 0
    expected_right: float = 0.0

    @property
    def precision(self) -> float:
        return self.right / max(self.edges, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.planted, 1)

    @property
    def chance(self) -> float:
        """Return the average precision of a random graph of equal size."""
        return self.expected_right / max(self.edges, 1)


def planted_signs(prepare: Path) -> Planted:
    """Names of rows only: chief complaints are free text, and a hidden level is no diagnosis."""
    links = pl.read_parquet(prepare / "hospital" / "synthetic" / "links.parquet")
    rows = links.filter(pl.col("kind") != "latent", pl.col("table") != "ed/triage")
    signs: Planted = {}
    for sign, target in rows.select("sign", "target").iter_rows():
        signs.setdefault(target, {target}).add(sign)
    return signs


def planted_results() -> dict[str, set[Concept]]:
    """Return each diagnosis with the laboratory results that its condition or problem causes."""
    shifted = [(problem.codes[0][1], problem.labs) for problem in PROBLEMS]
    shifted += [(condition.codes[1], condition.labs) for condition in CONDITIONS]
    results: dict[str, set[Concept]] = {}
    for code, labs in shifted:
        for key, shift in labs.items():
            result = Concept("labevents", TESTS[TEST_INDEX[key]].label, HIGH if shift > 0 else LOW)
            results.setdefault(DIAGNOSIS_TITLES[code, 10], set()).add(result)
    return results


def compare(prepare: Path, graph: Path, top: int, labs: bool = False) -> dict[str, Found]:
    """Each task's evidence, at most `top` for an answer, beside what was planted."""
    prepared, planted = Prepared(prepare), planted_signs(prepare)
    results = planted_results() if labs else {}
    with (graph / "graphs.jsonl").open(encoding="utf-8") as lines:
        rows = {row["sample_id"]: row for row in map(json.loads, lines) if row["task"] in TASKS}
    index = prepared.index(tasks=TASKS).filter(pl.col("sample_id").is_in(list(rows)))
    found: dict[str, Found] = {task: Found() for task in TASKS}
    for sample in prepared.as_samples(index):
        context = prepared.context(sample)
        shown = {concept for event in context for concept in event_concepts(event)}
        if labs:
            shown |= {one.concept for one in occurrences(context) if is_result(one.concept)}
        drawn = from_json(rows[sample.sample_id]["graph"])
        for item, evidence in answers(drawn).items():
            if item in planted:
                edges = [concept_of(drawn.nodes[node]) for node, _ in evidence]
                edges = [one for one in edges if labs or not is_result(one)][:top]
                causes = {one for one in shown if one.name in planted[item] and not one.state}
                add(found[sample.task], edges, shown, causes | shown & results.get(item, set()))
    return found


def add(found: Found, edges: list[Concept], shown: set[Concept], causes: set[Concept]) -> None:
    """Count one answer's edges; apart from laboratory results, a state does not matter."""
    same = {one if is_result(one) else one._replace(state="") for one in edges}
    same, shown, causes = ({one for one in s if "/" not in one.kind} for s in (same, shown, causes))
    found.edges += len(same)
    found.right += len(same & causes)
    found.planted += len(causes)
    found.expected_right += len(same) * len(causes) / max(len(shown), 1)


def is_result(concept: Concept) -> bool:
    return concept.kind == "labevents" and concept.state != ""


def concept_of(node: dict) -> Concept:
    return Concept(node["table"], node["label"], node.get("state", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepare", type=Path)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--labs", action="store_true")
    arguments = parser.parse_args()
    print("task             K  edges  precision  chance  planted  recall")
    for top in (1, 3, 5, 20):
        for task, found in compare(arguments.prepare, arguments.graph, top, arguments.labs).items():
            print(
                f"{task:15} {top:2}  {found.edges:5}  {found.precision:9.3f}  {found.chance:6.3f}"
                f"  {found.planted:7}  {found.recall:6.3f}"
            )


if __name__ == "__main__":
    main()
