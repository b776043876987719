"""Checks of stage=infer that need no model: they run before torch is imported."""

from pathlib import Path
from typing import TYPE_CHECKING

from ehrr1 import runs
from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.tasks.catalog import NAMED_TASKS

if TYPE_CHECKING:
    from ehrr1.tasks.samples import Prepared

ENGINES = ("transformers", "vllm", "server")
"""The engines that stage=infer asks."""


def check(cfg: Config) -> None:
    """Raise UserError for settings that are missing or do not go together, all in one."""
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
            for name, value in (one | {"infer.page": infer.page}).items()
            if value is not None
        ]
    else:
        problems += _question_problems(cfg)
        if infer.output is not None:
            problems.append(
                f"infer.output={infer.output}: it is where the answers of infer.path go"
            )
    if infer.page is not None and not Path(infer.page).resolve().parent.is_dir():
        problems.append(f"infer.page={infer.page}: there is no such folder; make it first")
    if isinstance(cfg.answer, list):
        problems.append(f"answer={cfg.answer}: stage=infer asks in one way; choose one")
    if cfg.engine.name not in ENGINES:
        problems.append(
            f"engine={cfg.engine.name}: stage=infer asks by {', '.join(ENGINES)}; leave it out"
        )
    if problems:
        raise UserError("; ".join(problems))


def check_inputs(cfg: Config) -> None:
    """Raise UserError where this run has no model, or no prepared patients to ask about."""
    if cfg.engine.name != "server":
        source_of(cfg)
    if cfg.infer.subject is not None and cfg.record is None:
        prepared(cfg)


def _question_problems(cfg: Config) -> list[str]:
    """List what is wrong with the settings of one question."""
    infer, problems = cfg.infer, []
    if (cfg.question is None) == (infer.task is None):
        both = "both are set" if infer.task is not None else "neither is set"
        problems.append(f"question and infer.task: {both}; ask question='...' or infer.task=TASK")
    elif infer.task is not None and infer.task not in NAMED_TASKS:
        problems.append(f"infer.task={infer.task}: no such task; choose {', '.join(NAMED_TASKS)}")
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
    """Return whether a record is a MEDS dataset or one of its files, and not a text."""
    return path.is_dir() or path.suffix == ".parquet"


def prepared(cfg: Config) -> "Prepared":
    """Open the run's own store of patients. Raises UserError where it is not prepared."""
    try:
        inputs = runs.find_inputs(cfg, "card")
    except runs.MissingRunError as error:
        message = str(error).replace("stage=card", "a patient of the store", 1)
        raise runs.MissingRunError(message, error.stage) from error
    runs.check_inputs(cfg, inputs)
    from ehrr1.tasks.samples import Prepared  # with Polars

    return Prepared(inputs["prepare"])


def source_of(cfg: Config) -> Path | str:
    """Return where the weights are.

    They are those of a stage that is named by `inputs`, else of `model.path`, else of the last
    finished training stage of this run. Raises UserError where there are none.
    """
    given = [cfg.inputs.of(stage) for stage in reversed(TRAINING) if cfg.inputs.of(stage)]
    if given:
        return Path(given[0]) / "hf"
    if cfg.model.path is not None:
        return str(cfg.model.path)
    for stage in reversed(TRAINING):
        folder = runs.home(cfg) / stage
        if runs.is_finished(folder):
            return folder / "hf"
    raise UserError(
        f"model={cfg.model.name}: it starts from nothing, and {runs.home(cfg)} has no finished "
        f"{', '.join(TRAINING)}; train it first (`python run.py`), or name a model: model=FOLDER "
        "or model=OWNER/NAME"
    )
