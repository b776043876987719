"""`eval.chains`: models answer behind chains that are given, and write the answer alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ehrr1.engines.base import Completion, Engine, SamplingParams
from ehrr1.errors import UserError
from ehrr1.evaluation.predict import CHAIN_TOO_LONG, Predictor, Writing
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.evaluation.targets import results
from ehrr1.prompts.messages import CLOSED, OPENED
from ehrr1.prompts.tokenizer import CHAT_TEMPLATE, train_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question, Tree
from ehrr1.reasoning.chain import without_results
from ehrr1.runs import Run, needed
from ehrr1.stages.eval_samples import study_of
from ehrr1.tasks.catalog import SUITES
from ehrr1.tasks.samples import Prepared
from tests.settings import composed
from tests.test_graph import sample
from tests.test_predict import Records, table_of
from tests.test_records import hospital, prepared
from tests.test_results import stages

__all__ = ["hospital"]  # a fixture

CHAIN = "## Extraction\nPotassium\n## Reasoning\nso <think> Sodium </think>"
GIVEN = PromptMode("think", chains="given")
OPENING = CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
"""A template that opens the think block itself."""


@dataclass
class Scribe(Engine):
    """Notes what it is asked, and answers `Heparin`."""

    prompt_builder: PromptBuilder
    asked: list[list[int]] = field(default_factory=list)
    sampling: SamplingParams | None = None

    def stream(
        self, prompts: Sequence[list[int]], sampling: SamplingParams, **how: Any
    ) -> Iterator[tuple[int, list[Completion]]]:
        self.asked, self.sampling = list(prompts), sampling
        said = self.prompt_builder.tokens("Heparin")
        yield from ((n, [Completion(said, [], False)]) for n in range(len(prompts)))

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        self.asked = [tree.trunk + b.prompt for tree in trees for b in tree.branches]
        for number, tree in enumerate(trees):
            yield number, np.full((len(tree.branches), len(ids)), -1.0)

    def logprobs(self, tokens: list[int]) -> list[float]:
        raise AssertionError("an evaluation reads answers, and no log-probabilities of a prompt")

    def close(self) -> None:
        pass


@pytest.fixture(params=[CHAT_TEMPLATE, OPENING], ids=["closed", "opened"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made = train_tokenizer({"Potassium yes no\nSodium\nHeparin": 5}, 400)
    made.chat_template = request.param
    return made


def asking(tokenizer: PreTrainedTokenizerBase, **chains: str) -> tuple[Predictor, Scribe]:
    prompt_builder = PromptBuilder(tokenizer, 2000)
    engine = Scribe(prompt_builder)
    by_id = {name.replace("__", "/"): chain for name, chain in chains.items()}
    return Predictor(engine, prompt_builder, Records(), Writing(400, 5), chains=by_id), engine


def trained(predictor: Predictor, task: str, answer: str) -> list[int]:
    """The tokens that `reason` would train on, for the same sample and chain."""
    question = Question("", task, think=True, answer=answer, chain=CHAIN)
    branch = predictor.prompt_builder.branch(question)
    return branch.prompt + branch.completion


def test_a_decision_is_answered_behind_the_closed_chain(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    predictor, engine = asking(tokenizer, emar__1=CHAIN)
    table = table_of(predictor.decisions([sample(1, "emar", "Heparin")], GIVEN))
    assert engine.sampling is not None and engine.sampling.max_new_tokens == 5
    [prompt] = engine.asked
    whole = trained(predictor, "emar", "Heparin")
    ending = predictor.prompt_builder.tokens(f"Heparin{predictor.prompt_builder.chat.end}")
    assert whole[-len(ending) :] == ending
    assert prompt[len(ending) - len(whole) :] == whole[: -len(ending)]
    text = tokenizer.decode(prompt)
    assert text.count(OPENED) == 1 and text.endswith(f"{CHAIN}{CLOSED}")
    [row] = table.iter_rows(named=True)
    assert row["prediction"] == "Heparin" and row["problem"] is None
    assert row["completion"].startswith(f"{OPENED}## Extraction\nPotassium")
    assert row["completion"].endswith(f"{CLOSED}Heparin")


def test_a_probability_is_read_behind_the_closed_chain(tokenizer: PreTrainedTokenizerBase) -> None:
    predictor, engine = asking(tokenizer, ICU_Readmission__1=CHAIN)
    table = table_of(predictor.risk([sample(1, "ICU_Readmission", "yes")], GIVEN))
    assert engine.sampling is None  # nothing is written
    [prompt] = engine.asked
    assert tokenizer.decode(prompt).endswith(f"{CHAIN}{CLOSED}")
    assert table["probability"].to_list() == [pytest.approx(0.5)]


def test_a_chain_that_leaves_no_room_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    predictor, engine = asking(tokenizer, emar__1=CHAIN, emar__2="Sodium " * 400)
    asked = [sample(1, "emar", "Heparin"), sample(2, "emar", "Heparin")]
    table = table_of(predictor.decisions(asked, GIVEN))
    problems = dict(table.select("sample_id", "problem").iter_rows())
    assert problems == {"emar/1": None, "emar/2": CHAIN_TOO_LONG} and len(engine.asked) == 1


def test_results_would_tell_the_answer() -> None:
    chain = "## Extraction\na\n## Reasoning\nb\n## Final Results\nHeparin"
    assert without_results(chain) == "## Extraction\na\n## Reasoning\nb"
    assert without_results("**Final Results**: x") == ""
    assert without_results("Final Results come\nlast") == ""
    assert without_results("## Case for yes\na\n## Case for no\nb") == (
        "## Case for yes\na\n## Case for no\nb"
    )


def test_every_model_answers_behind_the_chains_and_its_name_says_so(tmp_path: Path) -> None:
    inputs = stages(tmp_path, "adapt", "reason")
    found = results(composed(eval={"chains": "given", "models": ["adapt", "reason"]}), inputs)
    assert [one.name for one in found] == ["adapt:think-given", "reason:think-given"]
    assert all(one.risk == one.decision == GIVEN for one in found)
    assert "chains" in needed(composed(eval={"chains": "given"}), "eval")
    assert "chains" not in needed(composed(eval={"chains": "chains.jsonl"}), "eval")


def study(world: Prepared, **settings: Any) -> Any:
    cfg = composed(eval={"samples_per_task": None, **settings})
    return study_of(cfg, Run(world.folder, "eval", {"prepare": world.folder}))


def test_samples_without_a_chain_are_not_asked(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, _ = prepared(hospital, tmp_path / "prepare")
    asked = world.samples("test", ["emar", "ICU_Readmission", "Inpatient_Mortality"])
    names = [one.sample_id for one in asked]
    path = tmp_path / "chains.jsonl"
    lines = [
        {"sample_id": names[0], "chain": f"{CHAIN}\n## Final Results\nx", "answer": "x"},
        {"sample_id": names[1], "chain": "## Final Results\nx", "answer": "x"},  # nothing is left
        {"sample_id": names[2], "chain": CHAIN, "answer": "x", "kept": False},
        {"sample_id": names[-1], "chain": CHAIN, "answer": "x"},
    ]
    path.write_text("".join(json.dumps({"kept": True} | line) + "\n" for line in lines))
    found = study(world, chains=str(path))
    assert found.chains == {names[0]: CHAIN, names[-1]: CHAIN}
    assert found.index["sample_id"].sort().to_list() == sorted([names[0], names[-1]])
    told = " ".join(capsys.readouterr().err.split())
    everything = len(world.samples("test", SUITES["release45"]))
    assert f"eval.chains: 2 of {everything:,} samples have a chain; others are not asked" in told
    assert study(world, chains=str(tmp_path)).chains == found.chains  # the folder of a stage
    with pytest.raises(UserError, match=r"no sample of eval\.split=validation has a chain"):
        study(world, chains=str(path), split="validation")
    path.write_text("{")
    with pytest.raises(UserError, match=r"eval\.chains=.*has a line 1 that is no JSON"):
        study(world, chains=str(path))
