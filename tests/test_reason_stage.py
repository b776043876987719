"""stage=reason through the command line: chains, and direct answers beside them."""

import json
from pathlib import Path

from datasets import Dataset

from ehrr1.prompts.tokenizer import load_tokenizer
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
    asked: dict[str, int] = {}
    alone: set[str] = set()
    for tree in Dataset.from_file(str(folder / "data" / "training.arrow")):
        for name in tree["sample_ids"]:
            asked[name] = asked.get(name, 0) + 1
        for name in set(tree["sample_ids"]):  # both questions are on one record
            assert tree["sample_ids"].count(name) == asked[name]
        alone |= {
            TASKS[task].kind
            for task, name in zip(tree["tasks"], tree["sample_ids"], strict=True)
            if asked[name] == 1
        }
    twice = sum(count == 2 for count in asked.values())
    assert twice == metrics["samples/think"] > 0
    assert metrics["samples/direct"] == len(asked) > twice
    assert alone == {"risk"}


def test_each_word_of_a_compact_line_is_a_token(smoke: Path) -> None:
    tokenizer = load_tokenizer(smoke / "adapt" / "hf")
    assert {len(tokenizer(line)["input_ids"]) for line in compact_words()} == {2}
