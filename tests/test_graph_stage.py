"""stage=graph and stage=chains by the command line: ablations, yes/no questions, resuming."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import networkx as nx
import pytest

from ehrr1.files import read_json
from ehrr1.graph.concepts import Concept, occurrences
from ehrr1.graph.evidence import EVIDENCE, answers, covered, from_json
from ehrr1.prompts.messages import BOTH_CASES
from ehrr1.prompts.wording import OURS
from ehrr1.reasoning.chain import parse_cases
from ehrr1.stages.reason import ask
from ehrr1.tasks.samples import Prepared
from tests.conftest import CommandLine

Stage = Callable[..., Path]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def graphs_of(folder: Path) -> dict[str, nx.DiGraph]:
    rows = rows_of(folder / "graph" / "graphs.jsonl")
    return {row["sample_id"]: from_json(row["graph"]) for row in rows}


@pytest.fixture
def stage(smoke: Path, command_line: CommandLine) -> Stage:
    """Run stages of the smoke experiment as a variant; returns the variant's folder."""

    def run(variant: str, stages: Sequence[str], *settings: str) -> Path:
        for name in stages:
            command = ["experiment=smoke", f"output_root={smoke.parent}", f"variant={variant}"]
            done = command_line(*command, f"stage={name}", *settings)
            assert done.returncode == 0, done.stderr[-3000:]
        return smoke / variant

    return run


def test_a_random_graph_has_the_size_of_the_real_one(smoke: Path, stage: Stage) -> None:
    real = graphs_of(smoke)
    # by two processes, as the real one was drawn by one
    drawn = graphs_of(stage("random", ["graph"], "ablation=random_graph", "graph.workers=2"))
    assert list(drawn) == list(real)
    same = moved = 0
    for sample_id, graph in real.items():
        other = answers(drawn[sample_id])
        for item, evidence in answers(graph).items():
            measures = [
                [{name: edge[name] for name in edge if name != "kind"} for _, edge in some]
                for some in (other[item], evidence)
            ]
            assert measures[0] == measures[1]
            same += sum(node in dict(evidence) for node, _ in other[item])
            moved += len(evidence)
    assert same < 0.7 * moved


def test_without_a_graph_every_sample_is_there_and_has_no_evidence(
    smoke: Path, stage: Stage
) -> None:
    folder = stage("nothing", ["graph"], "ablation=no_graph")
    graphs = graphs_of(folder)
    assert set(graphs) >= set(graphs_of(smoke))
    assert not any(covered(graph) for graph in graphs.values())
    assert not list((folder / "graph" / "counts").glob("*.npz"))


def test_risk_questions_have_evidence_and_a_case_for_each_outcome(
    smoke: Path, stage: Stage
) -> None:
    settings = ["graph.risk=true", "graph.risk_min_lift=1.0"]
    folder = stage("risk", ["graph", "chains"], *settings)
    graphs = rows_of(folder / "graph" / "graphs.jsonl")
    risk = {row["sample_id"] for row in graphs if row["task"] == "ED_Hospitalization"}
    assert risk
    for row in graphs:
        if row["sample_id"] in risk:
            assert set(answers(from_json(row["graph"]))) == {"yes", "no"}
    chains = [row for row in rows_of(folder / "chains" / "chains.jsonl")]
    cases = [row for row in chains if row["sample_id"] in risk]
    assert cases and all(row["answer"] in ("yes", "no") for row in cases)
    kept = [row for row in cases if row["kept"]]
    assert kept and all(parse_cases(row["chain"]) for row in kept)
    assert all(row["faithfulness"] == 1 for row in kept)
    assert all(" evidence." in row["chain"] for row in kept)  # how much each piece weighs
    samples = Prepared(smoke / "prepare").samples("train", ["ED_Hospitalization"])
    chains = {row["sample_id"]: (row["chain"], row["answer"]) for row in kept}
    sample = next(sample for sample in samples if sample.sample_id in chains)
    # what `reason` learns
    (question,) = ask(sample, chains, also_direct=False, risk_weight=1.0, style=OURS)
    assert question.think and question.chain == chains[sample.sample_id][0]
    assert question.instruction is not None and question.instruction.endswith(BOTH_CASES)


NAMES = ("Furosemide", "Insulin", "Metoprolol", "Potassium", "Glucose", "Pneumonia", "Fever")


def test_umls_gives_ids_mentions_and_links(stage: Stage, tmp_path: Path) -> None:
    """From the user's own three files: names linked, free text read, the same drug found again."""
    ids = [f"C{number:07}" for number in range(len(NAMES))]
    atoms = [
        f"{concept}|ENG|P|L{n}|PF|S{n}|Y|A{n}||||OWN|PT|{n}|{name}|0|N|256|"
        for n, (concept, name) in enumerate(zip(ids, NAMES, strict=True))
    ]
    types = [f"{concept}|T047|B2|Disease or Syndrome|AT|256|" for concept in ids]
    facts = [f"{ids[-2]}||CUI|RO|{concept}||CUI|may_treat|R||OWN|OWN||Y|N||" for concept in ids[:5]]
    files = {"MRCONSO.RRF": atoms, "MRSTY.RRF": types, "MRREL.RRF": facts}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    settings = ["concepts=umls", f"concepts.folder={tmp_path}", f"concepts.cache={tmp_path}"]
    bounds = ["graph.max_fdr=0.2", "graph.min_npmi=0.01", "graph.counted_samples_per_task=1000"]
    folder = stage("umls", ["graph"], *settings, *bounds)
    metrics = read_json(folder / "graph" / "metrics.json")
    assert 0 < metrics["linked/emar"] < 1
    assert sum(share for name, share in metrics.items() if name.startswith("same_concept/")) > 0
    edges = [e for row in rows_of(folder / "graph" / "graphs.jsonl") for e in row["graph"]["edges"]]
    found = [edge for edge in edges if edge["kind"] in EVIDENCE]
    assert found and all(edge["npmi"] >= 0.01 and edge["p"] < 0.2 for edge in found)
    assert {edge["vocabulary"] for edge in edges if edge["kind"] == "knowledge"} <= {
        *("OWN", "dictionary")
    }


def test_a_killed_run_goes_on_with_the_parts_that_are_there(
    smoke: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    """Read the parts on disk: a part that was changed is believed."""
    whole = smoke / "graph"
    folder = tmp_path / "smoke" / "graph"
    command = ["experiment=smoke", f"output_root={tmp_path}", "stage=graph"]
    command.append(f"inputs.prepare={smoke / 'prepare'}")
    folder.mkdir(parents=True)
    for name in ("config.yaml", "inputs.json"):
        (folder / name).write_text((whole / name).read_text())
    first = rows_of(whole / "graphs.jsonl")[0]
    (folder / "parts").mkdir()
    (folder / "parts" / "000000.jsonl").write_text(json.dumps(first) + "\n")
    (folder / "counts").mkdir()
    for path in (whole / "counts").iterdir():
        (folder / "counts" / path.name).write_bytes(path.read_bytes())
    counted = {p.name: p.stat().st_mtime_ns for p in (folder / "counts").iterdir()}
    done = command_line(*command)
    assert done.returncode == 0 and "resumed" in done.stderr, done.stderr[-3000:]
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "counts").iterdir()} == counted
    lines = (folder / "graphs.jsonl").read_text().splitlines()
    rest = set((whole / "graphs.jsonl").read_text().splitlines())
    assert json.loads(lines[0]) == first and 1 < len(lines) < len(rest)
    assert set(lines[1:]) < rest and not (folder / "parts").exists()


def test_metrics_are_those_of_the_graphs(smoke: Path) -> None:
    metrics = read_json(smoke / "graph" / "metrics.json")
    rows = rows_of(smoke / "graph" / "graphs.jsonl")
    emar = [from_json(row["graph"]) for row in rows if row["task"] == "emar"]
    assert metrics["samples/emar"] == len(emar)
    assert metrics["coverage/emar"] == sum(covered(g) > 0 for g in emar) / len(emar)
    edges = [e for row in rows for e in row["graph"]["edges"]]
    for kind in ("cooccurrence", "repetition"):
        assert metrics[f"edges/{kind}"] == sum(edge["kind"] == kind for edge in edges) > 0
    shares = {
        split: [
            covered(from_json(r["graph"]))
            for r in rows
            if (r["task"], r["split"]) == ("emar", split)
        ]
        for split in ("train", "validation")
    }
    assert all(
        metrics[f"coverage_{split}/emar"] == sum(map(bool, some)) / len(some)
        for split, some in shares.items()
    )
    assert {value for name, value in metrics.items() if name.startswith("without_own/")} == {1.0}
    assert metrics["linked/emar"] == 0  # concepts=items has no dictionary


def test_training_edges_hold_without_their_own_patient(smoke: Path) -> None:
    """Counted again from the contexts of the other patients alone."""
    prepared = Prepared(smoke / "prepare")
    index = {s.sample_id: s for s in prepared.samples("train", ["emar", "labevents"])}
    rows = [r for r in rows_of(smoke / "graph" / "graphs.jsonl") if r["sample_id"] in index]
    counted = [index[row["sample_id"]] for row in rows]
    shown = {s.context_id: {o.concept for o in occurrences(prepared.context(s))} for s in counted}
    checked = 0
    for row in rows[::7]:
        sample, graph = index[row["sample_id"]], from_json(row["graph"])
        others = [s for s in counted if s.task == sample.task]
        others = [s for s in others if s.subject_id != sample.subject_id]
        for item, evidence in answers(graph).items():
            for node, edge in evidence:
                data = graph.nodes[node]
                concept = Concept(data["table"], data["label"], data.get("state", ""))
                have = {s.subject_id for s in others if concept in shown[s.context_id]}
                both = [s for s in others if item in s.target and concept in shown[s.context_id]]
                assert edge["support"] == len({s.subject_id for s in both}) >= 2
                assert edge["probability"] == round(edge["support"] / len(have), 4)
                checked += 1
    assert checked > 100
