"""Finished runs that a stage reads: where they are, and why one is not taken."""

import glob
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ehrr1.config.names import BENCHMARKS
from ehrr1.config.schema import Config, recorded
from ehrr1.damage import DamagedError
from ehrr1.errors import UserError
from ehrr1.runs.catalog import INPUTS, RESULT_SETTINGS, TOKENS, needed, optional, order
from ehrr1.runs.compare import differences, flat
from ehrr1.runs.paths import data_is_open, folder_of, home, is_finished

DEEPEST = 5
"""Folders between an experiment and a stage: a choice of each group, and what varies."""

TOLD = 3
"""The number of runs with other settings that an error names."""


class MissingRunError(UserError):
    """A finished run that a stage reads is not there; `stage` is the one that makes it."""

    def __init__(self, message: str, stage: str):
        super().__init__(message)
        self.stage = stage


def find_inputs(cfg: Config, stage: str) -> dict[str, Path]:
    """Return the finished folders that `stage` reads, by the name of their stage.

    Each is `inputs.<stage>` where that is given, else the one beside the run, else where the same
    was made before (`made`). Raises MissingRunError that names every missing one.
    """
    found: dict[str, Path] = {}
    missing = []
    required, possible = needed(cfg, stage), optional(cfg, stage)
    for name in dict.fromkeys((*required, *(one for one in possible if one in order(cfg)))):
        given = cfg.inputs.of(name)
        folder = Path(given) if given else made(cfg, name, stage)
        if name == "chains" and not given and not is_finished(folder) and brings_chains(found):
            folder = found["prepare"]
        if is_finished(folder):
            found[name] = folder
        elif given or name in required:
            missing.append((name, folder))
    if missing:
        first = missing[0][0]
        places = ", ".join(f"'{name}' (not in {folder})" for name, folder in missing)
        raise MissingRunError(
            f"stage={stage} needs the finished stage{'s' * (len(missing) > 1)} {places}: "
            f"run stage={first} with the same settings first, "
            f"or point to a finished run by inputs.{first}=DIR{_others(cfg, first)}",
            first,
        )
    return found


def inputs_of(folder: Path, stage: str) -> dict[str, Path]:
    """Return the runs that a finished run of `stage` has read, or none if one was moved."""
    if stage not in INPUTS:
        return {}
    try:
        return find_inputs(recorded(folder), stage)
    except UserError:
        return {}


def are_closed(folder: Path, stage: str) -> bool:
    """Return whether the records of a run of `stage` are closed, or cannot be found."""
    prepare = inputs_of(folder, stage).get("prepare")
    return prepare is None or not data_is_open(prepare)


def brings_chains(found: Mapping[str, Path]) -> bool:
    """Return whether the prepared records brought chains (`stages/given_chains.py`)."""
    return "prepare" in found and (found["prepare"] / "chains.jsonl").exists()


def _others(cfg: Config, stage: str) -> str:
    """Say how the experiment's finished runs of a stage differ from the one that is missing."""
    near = [*above(cfg, stage), *elsewhere(cfg, stage, others=False)]
    told = (
        (folder, _unlike(cfg, stage, folder, {}))
        for folder in dict.fromkeys(near)
        if is_finished(folder)
    )
    return "".join(
        f"; {folder} was made with other settings ({'; '.join(found[:3])})"
        for folder, found in islice(((f, d) for f, d in told if d), TOLD)
    )


def above(cfg: Config, stage: str) -> list[Path]:
    """List the folders where a stage's result would be in the variants above this one."""
    depth = len(Path(cfg.variant or "").parts)
    return [folder / stage for folder in list(home(cfg).parents)[:depth] if depth]


def elsewhere(cfg: Config, stage: str, others: bool) -> Iterator[Path]:
    """Yield finished runs of a stage in all variants of the experiment, then those of `others`."""
    root = Path(cfg.output_root)
    for begin in (glob.escape(cfg.name), *(["*"] if others else [])):
        for depth in range(DEEPEST + 1):
            for folder in sorted(root.glob("/".join([begin, *["*"] * depth, stage]))):
                if is_finished(folder):
                    yield folder


def made(cfg: Config, stage: str, reader: str) -> Path:
    """Return the folder where a stage's result is or will be.

    It is in this variant, or in one above it (`no_graph/both` is below `no_graph`, and that below
    the experiment), or in any other of the experiment, where it was made as this one would make it:
    with the same settings, from the same inputs.

    Variants thus share what they do not change, and experiments what they prepare. The questions of
    an evaluation on a benchmark's own records were not made from the models' records: of its models
    the settings alone are compared, those of all stages that led to them.
    """
    own = folder_of(cfg, stage)
    near = [folder for folder in above(cfg, stage) if is_finished(folder)]
    others = stage == "prepare" and stage in needed(cfg, reader)
    if is_finished(own) or not (near or any(elsewhere(cfg, stage, others))):
        return own
    benchmark = reader == "eval" and stage != "prepare" and cfg.data.name in BENCHMARKS
    try:
        inputs = {} if benchmark else find_inputs(cfg, stage)
    except UserError:
        return own
    # a model may be asked in other words than it was trained in (`stages/eval.py` says so)
    besides = frozenset({"wording"} if reader == "eval" else ())
    compared = led_to(cfg, stage) if benchmark else (stage,)

    def alike(folder: Path, rooted: bool) -> bool:
        return not any(
            _unlike(cfg, one, folder, inputs, rooted=rooted, besides=besides) for one in compared
        )

    same = (folder for folder in near if alike(folder, rooted=False))
    far = (folder for folder in elsewhere(cfg, stage, others) if alike(folder, rooted=True))
    return next(chain(same, far), own)


def _unlike(
    cfg: Config, stage: str, folder: Path, inputs: dict[str, Path], **how: Any
) -> list[str]:
    """Return `differences` of a run that is looked at by the way; a damaged one is not taken."""
    try:
        return differences(cfg, stage, folder, inputs, **how)
    except DamagedError as error:
        return [str(error)]


def tokenised_alike(cfg: Config, stage: str, inputs: Mapping[str, Path]) -> Iterator[Path]:
    """Yield other runs of a training stage, begun or finished, with the same tokenised samples.

    They do not depend on how a model learns from them (`adapt.lr`). A tokenizer that a run has
    trained is its own: without `model.path` there is none.
    """
    if cfg.model.path is None:
        return
    settings = cfg.plain()
    every = (key for part in RESULT_SETTINGS[stage] for key in flat(settings[part], part))
    besides = frozenset(every) - set(TOKENS[stage])
    own, root = folder_of(cfg, stage), Path(cfg.output_root)
    for depth in range(DEEPEST + 2):
        for folder in sorted(root.glob("/".join([*["*"] * depth, stage]))):
            if folder == own or not (folder / "config.yaml").exists():
                continue
            if not _unlike(cfg, stage, folder, dict(inputs), rooted=True, besides=besides):
                yield folder


def led_to(cfg: Config, stage: str) -> tuple[str, ...]:
    """Return a stage and all stages that it reads, directly or indirectly, except `prepare`."""
    inputs = [one for one in needed(cfg, stage) if one != "prepare"]
    return tuple(dict.fromkeys([stage, *(found for one in inputs for found in led_to(cfg, one))]))
