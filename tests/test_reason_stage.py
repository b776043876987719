"""stage=reason through the command line: chains, and direct answers beside them."""

import json
from collections import Counter
from pathlib import Path

from datasets import Dataset

from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.reasoning.chain import ARROW, BAR
from ehrr1.reasoning.template import compact_words
from ehrr1.tasks.catalog import TASKS
from tests.conftest import CommandLine


def test_the_question_of_each_chain_is_also_asked_directly(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    inputs = [f"inputs.{stage}={smoke / stage}" for stage in ("prepare", "adapt", "chains")]
    done = command_line(
        *("experiment=smoke", "stage=reason", f"output_root={tmp_path}", *inputs),
        *("reason.also_direct=true", "reason.direct_share=0.2"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "smoke" / "reason"
    metrics = json.loads((folder / "metrics.json").read_text())
    asked: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for tree in Dataset.from_file(str(folder / "data" / "training.arrow")):
        asked.update(tree["sample_ids"])
        kinds |= zip(tree["sample_ids"], (TASKS[task].kind for task in tree["tasks"]), strict=True)
        twice = Counter(tree["sample_ids"])
        assert all(count == asked[name] for name, count in twice.items())  # both on one record
    # a chain that leaves no room for a record is left out; its question is still asked directly
    decisions = [name for name, kind in kinds.items() if kind == "decision"]
    assert len(decisions) == metrics["samples/think"] > sum(asked[name] == 1 for name in decisions)
    assert metrics["samples/direct"] == len(asked) > len(decisions)
    assert {asked[name] for name, kind in kinds.items() if kind == "risk"} == {1}


def test_chains_are_written_over_candidates(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    place = ("experiment=smoke", f"output_root={tmp_path}", f"inputs.prepare={smoke / 'prepare'}")
    settings = ("graph.candidates=5", "chains.coverage=0.0", "chains.style=compact")
    for stage in ("graph", "chains"):
        done = command_line(*place, f"stage={stage}", *settings)
        assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "smoke"
    graphs = [json.loads(line) for line in (folder / "graph" / "graphs.jsonl").open()]
    assert all(len(row["graph"]["graph"]["candidates"]) <= 5 for row in graphs)
    kinds = {node["kind"] for row in graphs for node in row["graph"]["nodes"]}
    assert {"answer", "candidate"} < kinds
    chains = [json.loads(line) for line in (folder / "chains" / "chains.jsonl").open()]
    kept = [row for row in chains if row["kept"]]
    assert kept and all("together" not in row["chain"] for row in kept)
    named = [row for row in kept if _named(row["chain"]) > {*row["answer"].splitlines()}]
    assert named, "no line names what is not the answer"


def _named(chain: str) -> set[str]:
    """Return the items of the lines of reasoning."""
    lines = chain.split("## Reasoning")[1].split("## Final Results")[0].splitlines()
    parts = [line.split(f"{ARROW}{BAR}")[1].split(BAR) for line in lines if ARROW in line]
    return {item for part in parts for item in part}


def test_each_word_of_a_compact_line_is_a_token(smoke: Path) -> None:
    tokenizer = load_tokenizer(smoke / "adapt" / "hf")
    assert {len(tokenizer(line)["input_ids"]) for line in compact_words()} == {2}
