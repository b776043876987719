"""`data.tell_time`: questions that say when they are asked, on every road to a model."""

from functools import partial
from pathlib import Path

import networkx as nx
import pytest

from ehrr1.config.together import conflicts
from ehrr1.errors import UserError
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.files import write_json
from ehrr1.inference.query import Query
from ehrr1.prompts.lengths import measures, prompt_lengths
from ehrr1.prompts.wording import OURS
from ehrr1.reasoning.prompting import Limit, write_prompt
from ehrr1.stages import adapt, reason
from ehrr1.stages.infer import check
from ehrr1.stages.infer_batch import RowError, read_row
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.training.prompts import Prompts
from tests.settings import composed
from tests.test_export import exported
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

RISK, DECISION = "Readmission_30day", "emar"


@pytest.fixture(scope="module")
def worlds(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Prepared]:
    """The same records, without and with the time."""
    found = []
    for told in (False, True):
        folder = tmp_path_factory.mktemp("prepare")
        world, metrics = prepared(hospital, folder, tasks=[RISK, DECISION], tell_time=told)
        write_json(folder / "metrics.json", metrics)
        found.append(world)
    silent, telling = found
    return silent, telling


@pytest.fixture(scope="module")
def samples(worlds: tuple[Prepared, Prepared]) -> list[Sample]:
    return [worlds[1].samples("train", [task])[0] for task in (RISK, DECISION)]


def said(sample: Sample) -> str:
    return f"It is {sample.prediction_time:%Y-%m-%d %H:%M:%S}. {TASKS[sample.task].instruction}"


def test_the_time_is_all_that_differs(worlds: tuple[Prepared, Prepared]) -> None:
    silent, telling = (world.samples() for world in worlds)
    assert all(sample.instruction is None for sample in silent)
    assert [sample.instruction for sample in telling] == [said(sample) for sample in telling]
    index = worlds[1].index()
    assert index.drop("time_told").equals(worlds[0].index())


def test_training_says_it(samples: list[Sample]) -> None:
    chains = {sample.sample_id: ("A chain.", "An answer.") for sample in samples}
    for sample in samples:
        [direct] = adapt.ask(sample, 1.0, OURS)
        [thinking] = reason.ask(sample, chains, False, 1.0, OURS)
        rollout = Prompts.__new__(Prompts)
        rollout.think, rollout.wording = "task", OURS
        [prompt] = rollout.ask(sample)
        assert direct.instruction == prompt.instruction == said(sample)
        assert thinking.instruction is not None
        assert thinking.instruction.startswith(said(sample))


@pytest.mark.parametrize("wording", ["file", "ours"])
def test_evaluation_says_it(samples: list[Sample], wording: str) -> None:
    for answer in ("direct", "both"):
        for sample in samples:
            asked = PromptMode(answer, "list", wording)  # type: ignore[arg-type]
            words = asked.words(sample, lambda _: ["Aspirin"])
            assert words is not None and words.startswith(said(sample))


def test_writers_of_chains_are_told(worlds: tuple[Prepared, Prepared]) -> None:
    sample = worlds[1].samples("train", [DECISION])[0]
    context, wide = worlds[1].context(sample), [Limit(len, 100_000)]
    prompt = write_prompt(
        sample, context, nx.DiGraph(), sections=True, show_graph=True, limits=wide
    )
    assert said(sample) in prompt.question


def test_exported_rows_say_it(worlds: tuple[Prepared, Prepared], tmp_path: Path) -> None:
    rows = exported(worlds[1].folder, tmp_path, "test", 40)
    for row, sample in zip(rows, worlds[1].samples("test"), strict=False):
        assert row["instruction"] == said(sample)
        assert f"{row['input']}\n\n{said(sample)} " in row["messages"][1]["content"]


def test_lengths_count_it(worlds: tuple[Prepared, Prepared]) -> None:
    words = {"words": measures(None)["words"]}
    without, with_time = (
        prompt_lengths(world, world.index("test").head(20), words)["words"] for world in worlds
    )
    assert (with_time - without).unique().to_list() == [4]  # It is <date> <time>


def test_one_question_says_it() -> None:
    time, question = "2150-01-03 14:00:00", "Will the patient die?"
    line = f'{{"id": "a", "record": "Fever.", "time": "{time}", "question": "{question}"}}'
    reader = partial(read_row, records=lambda row: list)
    asking: Query = reader(line, tell_time=True)[0]
    assert asking.has_label and asking.words == f"It is {time}. {question} Answer yes or no."
    assert reader(line, tell_time=False)[0].words == f"{question} Answer yes or no."
    with pytest.raises(RowError, match="no time"):
        reader(line.replace('"time"', '"when"'), tell_time=True)
    given = ["stage=infer", "record=FILE.md", f"infer.task={RISK}", "data.tell_time=true"]
    with pytest.raises(UserError, match=r"data.tell_time=true: say which time it is"):
        check(composed(*given))
    check(composed(*given, f"infer.time={time}"))


def test_benchmarks_bring_their_own_questions() -> None:
    given = ["stage=prepare", "data=benchmark", "data.path=FILE.jsonl"]
    assert not conflicts(composed(*given))
    [conflict] = conflicts(composed(*given, "data.tell_time=true"))
    assert conflict.startswith("data.tell_time=true: samples of a benchmark file")
