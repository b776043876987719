"""Evidence edges find the causes that the synthetic hospital has planted; random ones do not."""

from pathlib import Path

from benchmarks.planted_evidence import compare
from tests.conftest import CommandLine


def test_evidence_finds_planted_causes(command_line: CommandLine, tmp_path: Path) -> None:
    settings = ["experiment=smoke", f"output_root={tmp_path}", "data.subjects=300"]
    settings += ["data.tasks=[diagnoses_icd]", "graph.samples_per_task=300", "graph.min_lift=1.5"]
    for words in (["stage=prepare"], ["stage=graph"], ["stage=graph", "ablation=random_graph"]):
        done = command_line(*settings, *words)
        assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "smoke"
    for top, recall in ((1, 0.2), (20, 0.8)):
        found = compare(root / "prepare", root / "graph", top)["diagnoses_icd"]
        random = compare(root / "prepare", root / "random_graph" / "graph", top)["diagnoses_icd"]
        assert found.precision > 3 * found.chance and found.recall > recall
        assert found.precision > 3 * random.precision and found.recall > 2 * random.recall
        assert random.precision < 2 * random.chance
