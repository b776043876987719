"""stage=infer: ask a model a question on one record, or a file of them. No run folder is made.

The answer goes to stdout, all else to stderr. A batch (`infer.path`) appends a line an answer to
its output as they come; the same command goes on where it was.
"""

import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.config.types import AnswerMode
from ehrr1.errors import UserError
from ehrr1.evaluation.opening import device
from ehrr1.evaluation.targets import STAGES
from ehrr1.inference.model import ENGINES, EHRModel
from ehrr1.inference.query import Answer, Record, events
from ehrr1.records.events import Event
from ehrr1.stages.infer_batch import Records, read_batch, shows_the_moment, time_of
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
    record = events(record_of(cfg))  # read before the model is
    lists = candidates(cfg, [cfg.infer.task])
    with opened(cfg) as model:
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


def ask_batch(cfg: Config) -> None:
    """Rows that cannot be asked are named by their lines and left out; the others are answered."""
    batch = read_batch(
        Path(str(cfg.infer.path)), output_of(cfg), row_reader(cfg), cfg.data.tell_time
    )
    lists = candidates(cfg, [asking.task for asking in batch.left])
    with opened(cfg) as model, batch.writing(settings_of(cfg, model.source)):
        batch.refuse(lambda asking: model.problem(asking, way(cfg)))
        for line in batch.report():
            say(line)
        say(f"{len(batch.left):,} of {batch.rows:,} rows to answer -> {batch.output}")
        cut = 0
        if batch.left:
            say(f"model: {model.source}")
            for name, answer in model.answers(batch.left, way(cfg), lists):
                batch.write(name, answer)
                cut += answer.cut_events > 0
    if cut:
        say(f"{cut:,} records were too long and lost their oldest events")
    say(f"{len(batch.done):,} rows are answered, {len(batch.refused):,} cannot be asked")


def check(cfg: Config) -> None:
    """Raise one UserError for all that is missing or does not go together."""
    infer, problems = cfg.infer, []
    sources = {"record": cfg.record, "infer.subject": infer.subject, "infer.path": infer.path}
    if all(value is None for value in sources.values()):
        problems.append(
            "record=null: name a record: record=FILE.md, infer.subject=ID of the prepared store, "
            "or infer.path=FILE.jsonl for many"
        )
    one = {"record": cfg.record, "question": cfg.question, "infer.subject": infer.subject}
    one |= {"infer.time": infer.time, "infer.task": infer.task}
    if infer.path is not None:
        problems += [
            f"infer.path={infer.path} with {name}={value}: each row of the file brings its own; "
            "leave one of the two out"
            for name, value in one.items()
            if value is not None
        ]
    else:
        problems += _question_problems(cfg)
        if infer.output is not None:
            problems.append(
                f"infer.output={infer.output}: it is where the answers of infer.path go"
            )
    if isinstance(cfg.answer, list):
        problems.append(f"answer={cfg.answer}: stage=infer asks in one way; choose one")
    if cfg.engine.name not in ENGINES:
        problems.append(
            f"engine={cfg.engine.name}: stage=infer asks by {', '.join(ENGINES)}; leave it out"
        )
    if problems:
        raise UserError("; ".join(problems))


def _question_problems(cfg: Config) -> list[str]:
    infer, problems = cfg.infer, []
    if (cfg.question is None) == (infer.task is None):
        both = "both are set" if infer.task is not None else "neither is set"
        problems.append(f"question and infer.task: {both}; ask question='...' or infer.task=TASK")
    elif infer.task is not None and infer.task not in ALL_TASKS:
        problems.append(f"infer.task={infer.task}: no such task; choose {', '.join(ALL_TASKS)}")
    if cfg.data.tell_time and infer.time is None:
        problems.append("data.tell_time=true: say which time it is: infer.time='...'")
    if infer.time is not None and infer.subject is None and not cfg.data.tell_time:
        problems.append(f"infer.time={infer.time}: it needs a patient: infer.subject=ID")
    if cfg.candidates == "list" and infer.task is None:
        problems.append("candidates=list: candidates are those of a task: infer.task=TASK")
    if cfg.record is not None:
        meds = is_meds(Path(str(cfg.record)))
        if meds and infer.subject is None:
            problems.append(
                f"record={cfg.record}: of a MEDS dataset name the patient: infer.subject=ID"
            )
        if not meds and infer.subject is not None:
            problems.append(
                f"record={cfg.record} with infer.subject={infer.subject}: a text is the record of "
                "one patient; leave one of the two out"
            )
    return problems


def is_meds(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".parquet"


def way(cfg: Config) -> AnswerMode:
    """How the model is asked; `check` has refused several ways."""
    assert not isinstance(cfg.answer, list)
    return cfg.answer or "direct"


def record_of(cfg: Config) -> Record:
    """The one record: a text's file, or a patient's events of MEDS or of the prepared store."""
    path = None if cfg.record is None else Path(str(cfg.record))
    if path is not None and not is_meds(path):
        return path
    subject, time = cfg.infer.subject or 0, time_of(cfg.infer.time)
    hours, inclusive = cfg.data.window_hours, shows_the_moment(cfg.infer.task)
    if path is not None:
        return meds_events(path, subject, time, hours, inclusive)
    return patient_events(prepared(cfg).store, subject, time, hours, inclusive)


def row_reader(cfg: Config) -> Records:
    """What finds the record of a batch's row that names a patient; the store is opened once."""
    store = cache(lambda: prepared(cfg).store)

    def read(row: dict[str, Any]) -> Callable[[], list[Event]]:
        time, inclusive = time_of(row.get("time")), shows_the_moment(row.get("task"))
        hours = cfg.data.window_hours
        return partial(patient_events, store(), row["subject_id"], time, hours, inclusive)

    return read


def prepared(cfg: Config) -> Prepared:
    """The run's own store of patients. Raises UserError where it is not prepared."""
    try:
        return Prepared(runs.find_inputs(cfg, "card")["prepare"])
    except runs.MissingRunError as error:
        told = str(error).replace("stage=card", "a patient of the store", 1)
        raise runs.MissingRunError(told, error.stage) from error


def candidates(cfg: Config, tasks: Iterable[str | None]) -> Candidates | None:
    """Lists of the prepared tasks' most frequent answers, or the release's lists.

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


def opened(cfg: Config) -> EHRModel:
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
        **settings,
    )


def source_of(cfg: Config) -> Path | str:
    """The weights: a stage's that is named, else those of `model.path`, else of the last finished
    training stage of this run. Raises UserError where there are none."""
    given = [cfg.inputs.of(stage) for stage in reversed(STAGES) if cfg.inputs.of(stage)]
    if given:
        return Path(given[0]) / "hf"
    if cfg.model.path is not None:
        return str(cfg.model.path)
    for stage in reversed(STAGES):
        folder = runs.home(cfg) / stage
        if runs.is_finished(folder):
            return folder / "hf"
    raise UserError(
        f"model={cfg.model.name}: it starts from nothing, and {runs.home(cfg)} has no finished "
        f"{', '.join(STAGES)}; train it first (`python run.py`), or name a model: model=FOLDER or "
        "model=OWNER/NAME"
    )


def output_of(cfg: Config) -> Path:
    return Path(cfg.infer.output or Path(str(cfg.infer.path)).with_suffix(".answers.jsonl"))


def settings_of(cfg: Config, source: str) -> dict[str, Any]:
    """What a batch's answers depend on, besides its rows."""
    infer = cfg.infer.plain()
    names = ("max_prompt_tokens", "max_new_tokens", "temperature")
    how = {"answer": way(cfg), "candidates": cfg.candidates, "seed": cfg.seed}
    how |= {"tell_time": True} if cfg.data.tell_time else {}
    return {"model": source, **how, **{name: infer[name] for name in names}}


def tell(answer: Answer) -> None:
    """On stderr: what was cut from the record, and what is wrong with the answer."""
    if answer.cut_events or answer.cut_tokens:
        say(
            f"the record is too long: its {answer.cut_events:,} oldest events and "
            f"{answer.cut_tokens:,} tokens of its history of earlier stays were left out "
            "(infer.max_prompt_tokens)"
        )
    if answer.problem:
        say(f"problem: {answer.problem}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
