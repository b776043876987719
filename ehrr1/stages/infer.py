"""stage=infer: ask a model a question on one record, or a file of them. No run folder is made.

The answer goes to stdout, all else to stderr. A batch (`infer.path`) appends a line an answer to
its output as they come; the same command goes on where it was.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.config.types import AnswerMode
from ehrr1.errors import UserError
from ehrr1.evaluation.opening import device
from ehrr1.files import write_text
from ehrr1.inference.model import EHRModel
from ehrr1.inference.pages import RecordPage, record_page
from ehrr1.inference.query import Answer, Record, events
from ehrr1.records.events import Event
from ehrr1.runs import data_is_open
from ehrr1.stages.infer_batch import Records, read_batch, shows_the_moment, stored, time_of
from ehrr1.stages.infer_checks import check, is_meds, prepared, source_of
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS, TASKS
from ehrr1.tasks.one_record import meds_events, patient_events
from ehrr1.tasks.samples import Prepared


def run_infer(cfg: Config) -> None:
    """Answer on stdout, or into the batch's output. Raises UserError before a model is loaded."""
    check(cfg)
    if cfg.infer.path is None:
        ask_one(cfg)
    else:
        ask_batch(cfg)


def ask_one(cfg: Config) -> None:
    """Answer one question on stdout, and say on stderr what was cut from the record."""
    open_data = are_open(cfg, [cfg.record is None])
    made = runs.home(cfg) / "infer" if cfg.infer.page is None else Path(cfg.infer.page)
    with runs.kept_beside(made, not open_data):
        answer_one(cfg, open_data)


def answer_one(cfg: Config, open_data: bool) -> None:
    """Read the record, ask the model, and print the answer or write its page."""
    record = events(record_of(cfg))  # read before the model is
    lists = candidates(cfg, [cfg.infer.task])
    with opened(cfg, open_data) as model:
        say(f"model: {model.source}")
        stream = cfg.infer.stream and sys.stdout.isatty()
        answer = model.ask(
            record,
            cfg.question,
            task=cfg.infer.task,
            answer=way(cfg),
            time=time_of(cfg.infer.time) if cfg.data.tell_time else None,
            candidates=lists,
            watch=partial(print, end="", flush=True) if stream else None,
        )
    print("" if stream else answer)
    if answer.probability is not None:
        print(f"probability of yes: {answer.probability:.4g}")
    tell(answer)
    if cfg.infer.page is not None:
        write_page(cfg, record, answer, model.source, open_data)


def write_page(
    cfg: Config, record: Sequence[Event], answer: Answer, source: str, open_data: bool
) -> None:
    """Write the page of `infer.page`: the record, the question and the answer."""
    task = cfg.infer.task
    shown = RecordPage(
        asked=cfg.question or ALL_TASKS[task or ""].instruction,
        time=time_of(cfg.infer.time),
        record=record,
        answer=answer,
        rates=base_rates(prepared(cfg), task) if task and cfg.record is None else None,
        model=source,
        is_open=open_data,
    )
    path = Path(str(cfg.infer.page))
    write_text(path, record_page(shown))
    say(f"page: {path}")


def base_rates(prepared: Prepared, task: str) -> dict[str, float]:
    """Return how often each item is in the answer of the task's training samples."""
    index = prepared.index("train", [task])
    counts = prepared.answers(index)["item"].value_counts()
    return {item: count / max(len(index), 1) for item, count in counts.iter_rows()}


def ask_batch(cfg: Config) -> None:
    """Answer a file of questions; rows that cannot be asked are named by their lines."""
    batch = read_batch(
        Path(str(cfg.infer.path)), output_of(cfg), row_reader(cfg), cfg.data.tell_time
    )
    lists = candidates(cfg, [asking.task for asking in batch.left])
    open_data = are_open(cfg, map(stored, batch.left))
    with (
        runs.kept_beside(batch.output, not open_data),
        opened(cfg, open_data) as model,
        batch.writing(settings_of(cfg, model.source)),
    ):
        batch.refuse(lambda asking: model.problem(asking, way(cfg)))
        told = batch.report()
        for line in told:
            say(line)
        say(f"{len(batch.left):,} of {batch.rows:,} rows to answer -> {batch.output}")
        cut = 0
        if batch.left:
            say(f"model: {model.source}")
            model.load()  # its errors are none of the rows
            for answer in batch.answer(lambda left: model.answers(left, way(cfg), lists)):
                cut += answer.cut_events > 0
        for line in batch.report():
            if line not in told:
                say(line)
    if cut:
        say(f"{cut:,} records were too long and lost their oldest events")
    say(f"{len(batch.done):,} rows are answered, {len(batch.refused):,} cannot be asked")
    say(f"  {batch.output}")


def way(cfg: Config) -> AnswerMode:
    """Return the mode of the answer; `check` has refused several."""
    assert not isinstance(cfg.answer, list)
    return cfg.answer or "direct"


def record_of(cfg: Config) -> Record:
    """Return the record: a text's file, or a patient's events of MEDS or of the prepared store."""
    path = None if cfg.record is None else Path(str(cfg.record))
    if path is not None and not is_meds(path):
        return path
    subject, time = cfg.infer.subject or 0, time_of(cfg.infer.time)
    hours, inclusive = cfg.data.window_hours, shows_the_moment(cfg.infer.task)
    if path is not None:
        return meds_events(path, subject, time, hours, inclusive)
    return patient_events(prepared(cfg).store, subject, time, hours, inclusive)


def row_reader(cfg: Config) -> Records:
    """Return a reader of the records of a batch's rows that name a patient."""
    store = cache(lambda: prepared(cfg).store)

    def read(row: dict[str, Any]) -> Callable[[], list[Event]]:
        time, inclusive = time_of(row.get("time")), shows_the_moment(row.get("task"))
        hours = cfg.data.window_hours
        return partial(patient_events, store(), row["subject_id"], time, hours, inclusive)

    return read


def candidates(cfg: Config, tasks: Iterable[str | None]) -> Candidates | None:
    """Return lists of the prepared tasks' most frequent answers, or the release's lists.

    Raises UserError for tasks that have none.
    """
    if cfg.candidates != "list":
        return None
    lists = Candidates.of(prepared(cfg), cfg.seed)
    if lacking := lists.lacking(task for task in tasks if task in TASKS):
        raise UserError(
            f"candidates=list: {lists.prepared.folder} holds rows of a file, and no list of "
            f"{', '.join(lacking)}; name records by data=..., or leave candidates out"
        )
    return lists


def are_open(cfg: Config, from_store: Iterable[bool]) -> bool:
    """Return whether all records that are asked about are open.

    `from_store` has an entry per record: whether it is a patient's of the prepared store, of which
    `prepare` has decided. Of others nothing is known: they are open if `data.open` is true.
    """
    return all(
        data_is_open(prepared(cfg).folder) if of_store else cfg.data.open is True
        for of_store in set(from_store)
    )


def opened(cfg: Config, open_data: bool) -> EHRModel:
    """Open the model with the settings of `engine` and `infer`; it is loaded when it is entered."""
    settings = cfg.engine.plain()
    limits = cfg.infer.max_new_tokens
    return EHRModel(
        None if cfg.engine.name == "server" else source_of(cfg),
        engine=settings.pop("name"),
        device=device(cfg),
        attention=cfg.model.attention,
        max_prompt_tokens=cfg.infer.max_prompt_tokens,
        think_tokens=limits.think,
        direct_tokens=limits.direct,
        temperature=cfg.infer.temperature,
        seed=cfg.seed,
        wording=cfg.wording,
        open_data=open_data,
        **settings,
    )


def output_of(cfg: Config) -> Path:
    """Return the file of a batch's answers."""
    return Path(cfg.infer.output or Path(str(cfg.infer.path)).with_suffix(".answers.jsonl"))


def settings_of(cfg: Config, source: str) -> dict[str, Any]:
    """Return what a batch's answers depend on, besides its rows."""
    infer = cfg.infer.plain()
    names = ("max_prompt_tokens", "max_new_tokens", "temperature")
    how = {"answer": way(cfg), "candidates": cfg.candidates, "seed": cfg.seed}
    how |= {"tell_time": True} if cfg.data.tell_time else {}
    return {"model": source, **how, **{name: infer[name] for name in names}}


def tell(answer: Answer) -> None:
    """Say on stderr what was cut from the record, and what is wrong with the answer."""
    if answer.cut_events or answer.cut_tokens:
        say(
            f"the record is too long: its {answer.cut_events:,} oldest events and "
            f"{answer.cut_tokens:,} tokens of its history of earlier stays were left out "
            "(infer.max_prompt_tokens)"
        )
    if answer.problem:
        say(f"problem: {answer.problem}")


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
