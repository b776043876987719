"""No concept, count or path comes from test patients, or from what was not known yet."""

import gzip
import json
import shutil
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrr1.graph.concepts import occurrences
from ehrr1.graph.cooccurrence import Cooccurrence
from ehrr1.graph.evidence import from_json
from ehrr1.tasks.samples import Prepared
from tests.conftest import CommandLine

MARK = "Onlyintestpatients"
NAMES = {
    "hosp/prescriptions": "drug",
    "hosp/emar": "medication",
    "hosp/pharmacy": "medication",
    "ed/pyxis": "name",
    "ed/medrecon": "name",
    "ed/triage": "chiefcomplaint",
    "note/discharge": "text",
    "note/radiology": "text",
}
"""Tables and the column of names or text that is replaced in all rows of test patients."""

TASKS = "[emar,prescriptions,medrecon,labevents,diagnoses_icd,ED_Hospitalization]"

DICTIONARY = f"""concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs
T:1\t{MARK}\tDisease\tTest\t\t
T:2\tfever\tSymptom\tTest\t\t
T:3\tfurosemide\tDrug\tTest\t\t
T:4\tpneumonia\tDisease\tTest\t\t
T:5\tnaproxen\tDrug\tTest\t\t
T:6\tlosartan potassium\tDrug\tTest\t\t
T:7\tvitamin d\tDrug\tTest\t\t
T:8\tmontelukast\tDrug\tTest\t\t
"""
FACTS = [(f"T:{drug}", "may_treat", ill) for drug in (3, 5, 6, 7, 8) for ill in ("T:2", "T:4")]
RELATIONS = "head\trelation\ttail\tsource\n" + "".join(
    f"{head}\t{relation}\t{tail}\tTest\n"
    for head, relation, tail in [*FACTS, ("T:1", "has", "T:2")]
)


@pytest.fixture(scope="module")
def worlds(
    smoke: Path, command_line: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The graphs of one hospital, as it is and with all that test patients have renamed."""
    root = tmp_path_factory.mktemp("worlds")
    (root / "concepts.tsv").write_text(DICTIONARY)
    (root / "relations.tsv").write_text(RELATIONS)
    split = pl.read_parquet(smoke / "prepare" / "split.parquet")
    test = set(split.filter(pl.col("split") == "test")["subject_id"])
    for name in ("plain", "marked"):
        shutil.copytree(smoke / "prepare" / "hospital", root / name)
    for table, column in NAMES.items():
        mark_rows(root / "marked" / f"{table}.csv.gz", column, test)
    for name in ("plain", "marked"):
        settings = ["experiment=smoke", "data=mimic", f"data.root={root / name}"]
        settings += [
            f"output_root={root / 'out'}",
            f"variant={name}",
            "concepts=open",
            *("graph.risk=true", "graph.min_support=1"),
            *("graph.candidates=8", "graph.weighed_samples_per_task=60"),
            f"data.tasks={TASKS}",
        ]
        settings += [f"concepts.dictionary={root / 'concepts.tsv'}"]
        settings += [f"concepts.relations={root / 'relations.tsv'}"]
        for stage in ("prepare", "graph"):
            done = command_line(f"stage={stage}", *settings)
            assert done.returncode == 0, done.stderr[-3000:]
    return root / "out" / "smoke" / "plain", root / "out" / "smoke" / "marked"


def mark_rows(path: Path, column: str, subjects: set[int]) -> None:
    rows = pl.read_csv(path, infer_schema=False)
    theirs = pl.col("subject_id").cast(pl.Int64).is_in(list(subjects))
    marked = rows.with_columns(pl.when(theirs).then(pl.lit(MARK)).otherwise(column).alias(column))
    assert marked.filter(pl.col(column) == MARK).height > 0
    with gzip.open(path, "wb") as file:
        marked.write_csv(file)


def test_nothing_comes_from_test_patients(worlds: tuple[Path, Path]) -> None:
    plain, marked = worlds
    graphs = [(world / "graph" / "graphs.jsonl").read_text() for world in worlds]
    assert graphs[0] == graphs[1] and graphs[0].count("\n") > 150
    assert "concept:knowledge:T:" in graphs[0] and '/text"' in graphs[0]
    assert '"likely": [' in graphs[0]
    for path in sorted((marked / "graph" / "counts").glob("*.npz")):
        counts, same = (
            Cooccurrence.load(path),
            Cooccurrence.load(plain / "graph/counts" / path.name),
        )
        assert MARK not in counts.targets
        assert MARK not in {concept.name for concept in counts.history}
        assert counts.units == same.units and (counts.n_history == same.n_history).all()
    for world in worlds:
        splits = Prepared(world / "prepare").index().select("sample_id", "split")
        drawn = [json.loads(line)["sample_id"] for line in graphs[0].splitlines()]
        found = splits.filter(pl.col("sample_id").is_in(drawn))["split"].unique().to_list()
        assert sorted(found) == ["train", "validation"]


def test_nothing_comes_from_after_the_prediction_time(worlds: tuple[Path, Path]) -> None:
    """Every event of a graph was known, and shows the concepts that are said to stand in it."""
    prepared = Prepared(worlds[0] / "prepare")
    samples = {sample.sample_id: sample for sample in prepared.samples("train")}
    lines = (worlds[0] / "graph" / "graphs.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["sample_id"] in samples]
    checked = 0
    for row in rows[::3]:
        sample, graph = samples[row["sample_id"]], from_json(row["graph"])
        assert row["prediction_time"] == sample.prediction_time.isoformat()
        context = prepared.context(sample)
        shown = {(one.event, one.concept.name) for one in occurrences(context)}
        for node, data in graph.nodes(data=True):
            if data["kind"] == "event":
                event = context[int(node.removeprefix("event:"))]
                known = event.available_time or datetime.min
                assert known <= sample.prediction_time
                checked += 1
        for concept, event, edge in graph.edges(data=True):
            if edge["kind"] == "occurrence" and "written" not in graph.nodes[concept]:
                position = int(event.removeprefix("event:"))
                assert (position, graph.nodes[concept]["label"]) in shown
    assert checked > 200
