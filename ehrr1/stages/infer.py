"""stage=infer: ask a model a question on one record, or a file of them. No run folder is made.

The answer goes to stdout, all else to stderr. A batch (`infer.path`) appends a line an answer to
its output as they come; the same command goes on where it was.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ehrr1 import runs
from ehrr1.errors import UserError
from ehrr1.evaluation.asking import Answer, Record, events
from ehrr1.evaluation.inference import ENGINES, EHRModel
from ehrr1.evaluation.opening import device
from ehrr1.evaluation.results import STAGES
from ehrr1.records.events import Event
from ehrr1.stages.infer_batch import Records, read_batch, shows_the_moment, time_of
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.one_record import meds_events, patient_events
from ehrr1.tasks.samples import Prepared


def run_infer(cfg: DictConfig) -> None:
    """Answer on stdout, or into the batch's output. Raises UserError before a model is loaded."""
    check(cfg)
    if cfg.infer.path is None:
        ask_one(cfg)
    else:
        ask_batch(cfg)


def ask_one(cfg: DictConfig) -> None:
    record = events(record_of(cfg))  # read before the model is
    with opened(cfg) as model:
        say(f"model: {model.source}")
        stream = cfg.infer.stream and sys.stdout.isatty()
        answer = model.ask(
            record,
            cfg.question,
            task=cfg.infer.task,
            answer=cfg.answer or "direct",
            candidates=candidates(cfg),
            watch=partial(print, end="", flush=True) if stream else None,
        )
    print("" if stream else answer)
    if answer.probability is not None:
        print(f"probability of yes: {answer.probability:.4g}")
    tell(answer)


def ask_batch(cfg: DictConfig) -> None:
    """Rows that cannot be asked are named by their lines and left out; the others are answered."""
    batch = read_batch(Path(cfg.infer.path), output_of(cfg), row_reader(cfg))
    with opened(cfg) as model, batch.writing(settings_of(cfg, model.source)):
        batch.refuse(lambda asking: model.problem(asking, cfg.answer or "direct"))
        for line in batch.report():
            say(line)
        say(f"{len(batch.left):,} of {batch.rows:,} rows to answer -> {batch.output}")
        cut = 0
        if batch.left:
            say(f"model: {model.source}")
            for name, answer in model.answers(batch.left, cfg.answer or "direct", candidates(cfg)):
                batch.write(name, answer)
                cut += answer.cut_events > 0
    if cut:
        say(f"{cut:,} records were too long and lost their oldest events")
    say(f"{len(batch.done):,} rows are answered, {len(batch.refused):,} cannot be asked")


def check(cfg: DictConfig) -> None:
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
    if OmegaConf.is_list(cfg.answer):
        problems.append(f"answer={cfg.answer}: stage=infer asks in one way; choose one")
    if cfg.engine.name not in ENGINES:
        problems.append(
            f"engine={cfg.engine.name}: stage=infer asks by {', '.join(ENGINES)}; leave it out"
        )
    if problems:
        raise UserError("; ".join(problems))


def _question_problems(cfg: DictConfig) -> list[str]:
    infer, problems = cfg.infer, []
    if (cfg.question is None) == (infer.task is None):
        both = "both are set" if infer.task is not None else "neither is set"
        problems.append(f"question and infer.task: {both}; ask question='...' or infer.task=TASK")
    elif infer.task is not None and infer.task not in ALL_TASKS:
        problems.append(f"infer.task={infer.task}: no such task; choose {', '.join(ALL_TASKS)}")
    if infer.time is not None and infer.subject is None:
        problems.append(f"infer.time={infer.time}: it needs a patient: infer.subject=ID")
    if infer.subject is not None and not isinstance(infer.subject, int):
        problems.append(f"infer.subject={infer.subject}: a patient's number is needed")
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


def record_of(cfg: DictConfig) -> Record:
    """The one record: a text's file, or a patient's events of MEDS or of the prepared store."""
    path = None if cfg.record is None else Path(str(cfg.record))
    if path is not None and not is_meds(path):
        return path
    how = {"time": time_of(cfg.infer.time), "hours": cfg.data.window_hours}
    how["inclusive"] = shows_the_moment(cfg.infer.task)
    if path is not None:
        return meds_events(path, cfg.infer.subject, **how)
    return patient_events(prepared(cfg).store, cfg.infer.subject, **how)


def row_reader(cfg: DictConfig) -> Records:
    """What finds the record of a batch's row that names a patient; the store is opened once."""
    store = cache(lambda: prepared(cfg).store)

    def read(row: dict[str, Any]) -> Callable[[], list[Event]]:
        time, inclusive = time_of(row.get("time")), shows_the_moment(row.get("task"))
        hours = cfg.data.window_hours
        return partial(patient_events, store(), row["subject_id"], time, hours, inclusive)

    return read


def prepared(cfg: DictConfig) -> Prepared:
    """The run's own store of patients. Raises UserError where it is not prepared."""
    try:
        return Prepared(runs.find_inputs(cfg, "card")["prepare"])
    except UserError as error:
        raise UserError(str(error).replace("stage=card", "a patient of the store", 1)) from error


def candidates(cfg: DictConfig) -> Candidates | None:
    """Lists of the prepared tasks' most frequent answers."""
    return Candidates(prepared(cfg), cfg.seed) if cfg.candidates == "list" else None


def opened(cfg: DictConfig) -> EHRModel:
    settings: Any = OmegaConf.to_container(cfg.engine, resolve=True)
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
        **settings,
    )


def source_of(cfg: DictConfig) -> Path | str:
    """The weights: a stage's that is named, else those of `model.path`, else of the last finished
    training stage of this run. Raises UserError where there are none."""
    given = [cfg.inputs[stage] for stage in reversed(STAGES) if cfg.inputs[stage]]
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


def output_of(cfg: DictConfig) -> Path:
    return Path(cfg.infer.output or Path(cfg.infer.path).with_suffix(".answers.jsonl"))


def settings_of(cfg: DictConfig, source: str) -> dict[str, Any]:
    """What a batch's answers depend on, besides its rows."""
    infer: Any = OmegaConf.to_container(cfg.infer, resolve=True)
    names = ("max_prompt_tokens", "max_new_tokens", "temperature")
    how = {"answer": cfg.answer or "direct", "candidates": cfg.candidates, "seed": cfg.seed}
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
