"""Prompts in the EHR-R1 release's style, held beside what its own rows and a tokenizer's template
give: token for token."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ehrr1.config.names import usual_wording
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.prompts.wording import style_of
from ehrr1.records.markdown import events_of
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.release.task_info import task_info
from tests.settings import composed
from tests.test_chat_format import NO_SWITCH

SYSTEM = "You are a helpful assistant."


@pytest.fixture(scope="module")
def ready(released: Path) -> list[dict[str, Any]]:
    lines = (released / "ehr_bench.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(params=["qwen3", "qwen2.5"])
def tokenizer(request: pytest.FixtureRequest, released: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of 1.7B and 8B, or of the 72B, whose template has no switch."""
    found = load_chat_tokenizer(released.parent / "qwen3-tokenizer")
    if request.param == "qwen2.5":
        found.chat_template = NO_SWITCH
    return found


@pytest.mark.parametrize("think", [True, False])
def test_prompts_are_the_releases_token_for_token(
    ready: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, think: bool
) -> None:
    prompt_builder = PromptBuilder(tokenizer, 1_000_000, style_of("release", "eval"))
    assert len(ready) == 108
    for row in ready:
        user = row["input"] + "\n" + row["instruction"] + ("\n/think" if think else "")
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
        assert isinstance(text, str)
        if not think and "</think>" not in text[-20:]:
            text += "<think>\n\n</think>\n"  # as the release closes thinking of the 72B
        events = events_of(row["input"])
        question = Question("s", row["task_info"]["task"], think, instruction=row["instruction"])
        asked = prompt_builder.prompt(events, preamble_length(events), question)
        assert asked == tokenizer(text, add_special_tokens=False)["input_ids"], row["idx"]


def test_switches_of_the_stages() -> None:
    for stage, direct in (
        *(("adapt", "Q"), ("eval", "Q"), ("infer", "Q")),
        *(("reason", "Q/no_think"), ("rl", "Q\n/no_think")),
    ):
        style = style_of("release", stage)
        assert style.asked("labevents", think=False, own="Q") == direct
        assert style.asked("labevents", think=True, own="Q") == "Q\n/think"
        assert style_of("file", stage).asked("labevents", think=True, own="Q") == "Q /think"


def test_facts_of_the_tasks_are_the_releases(ready: list[dict[str, Any]]) -> None:
    for row in ready:
        told = row["task_info"]
        own = task_info(told["task"])
        assert own == {name: told[name] for name in own}, told["task"]


def test_the_releases_rows_and_models_are_asked_in_its_style() -> None:
    assert usual_wording("synthetic", "tiny", None) == "file"
    assert usual_wording("release") == usual_wording("benchmark") == "release"
    assert usual_wording("mimic", "8b", "BlueZeros/EHR-R1-8B") == "release"
    cached = "/cache/hub/models--BlueZeros--EHR-R1-1.7B/snapshots/0a1b"
    assert usual_wording("mimic", "0a1b", cached) == "release"
    assert usual_wording("mimic", "hf", "/home/me/ehrr1/outputs/demo/rl/hf") == "file"
    assert composed("data=mimic", "data.root=X").wording == "file"
    assert composed("wording=ours").wording == "ours"
