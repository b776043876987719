"""A run is a folder: its path follows from what is asked, and it says what made it.

    <output_root>/<name>[/<variant>]/<stage>/
        config.yaml       the resolved configuration
        inputs.json       the runs it read, each with a fingerprint of its result
        environment.txt   Python, platform, processor, its kernels and threads, package versions
        metrics.json      flat, name to number; written last: it marks the run as finished

A finished run is reported and not made again, a half-done one resumes, one made with other
settings is refused with the difference.
"""

import fcntl
import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from ehrr1.config.names import BENCHMARKS, LOCAL, ORDER
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import read_json, remove, write_json, write_text

INPUTS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "audit": ("prepare",),
    "export": ("prepare",),
    "card": ("prepare",),
    "graph": ("prepare",),
    "chains": ("prepare", "graph"),
    "adapt": ("prepare",),
    "reason": ("prepare", "chains", "adapt"),
    "rl": ("prepare", "reason"),
    "eval": ("prepare",),
    "plan": (),
}
"""What each stage reads; `needed` says what it cannot do without."""

OPTIONAL_INPUTS: dict[str, tuple[str, ...]] = {"eval": ("adapt", "reason", "rl")}
"""What a stage uses where it is there."""

RESULT_SETTINGS: dict[str, tuple[str, ...]] = {
    "prepare": ("seed", "data"),
    "audit": ("seed", "audit"),
    "export": (),
    "card": (),
    "graph": ("seed", "concepts", "graph"),
    "chains": ("seed", "chains"),
    "adapt": ("seed", "model", "loss", "adapt", "trainer", "callbacks", "wording"),
    "reason": ("seed", "model", "loss", "reason", "trainer", "callbacks", "wording"),
    "rl": ("seed", "model", "rl", "rollout", "trainer", "callbacks", "wording"),
    "eval": ("seed", "model", "eval", "engine", "answer", "candidates", "wording"),
    "plan": (),
}
"""The sections of the configuration that change a stage's result."""

GIVEN = "given"
"""`eval.chains`: those of the run itself, and not of a file."""

NOT_COMPARED = frozenset(
    {
        *("data.shard", "data.shards", "graph.workers", "graph.show"),
        *("concepts.cache", "concepts.workers"),
        *("chains.concurrency", "chains.max_retries", "chains.timeout_seconds"),
        *("chains.poll_seconds", "chains.batch_size", "chains.batches", "chains.dry_run"),
        *("chains.budget_tokens", "chains.budget_usd", "chains.compliant_endpoint"),
        *("chains.gpu_memory_utilization", "chains.kv_cache_gib"),
        *("adapt.save_seconds", "reason.save_seconds", "rl.save_seconds"),
        *("trainer.save_top_k", "trainer.monitor", "trainer.keep_best"),
        *("adapt.eval_every", "reason.eval_every"),
        *("eval.shard", "eval.shards", "eval.batch_size", "eval.batch_tokens", "eval.cases"),
        *("engine.tensor_parallel", "engine.gpu_memory_utilization", "engine.kv_cache_gib"),
        *("engine.batch_size", "engine.batch_tokens", "rollout.batch_tokens"),
        *("rollout.tensor_parallel", "chains.tensor_parallel", "chains.batch_tokens", "chains.url"),
        *("engine.url", "engine.key_variable", "engine.concurrency", "engine.timeout_seconds"),
        *("engine.max_retries", "engine.compliant_endpoint"),
    }
)
"""Settings of those sections that say who does the work and at what cost, not what comes of it."""

DEEPEST = 5
"""Folders between an experiment and a stage: a choice of each group, and what varies."""

TOLD = 3
"""Runs with other settings that an error names."""

ALWAYS_AGAIN = frozenset({"audit", "card", "export", "plan"})
"""Stages that only show what is there: they run again and overwrite."""


class FolderInUseError(UserError):
    """Another process works in the folder."""


class MissingRunError(UserError):
    """A finished run that a stage reads is not there; `stage` is the one that makes it."""

    def __init__(self, message: str, stage: str):
        super().__init__(message)
        self.stage = stage


@dataclass
class Run:
    """One stage's folder while the stage works in it."""

    folder: Path
    stage: str
    inputs: dict[str, Path] = field(default_factory=dict)
    resuming: bool = False

    def input(self, stage: str) -> Path:
        """The folder of an earlier, finished stage."""
        return self.inputs[stage]


def needed(cfg: Config, stage: str) -> tuple[str, ...]:
    """What a stage cannot do without, with these settings."""
    inputs = INPUTS[stage]
    if stage == "rl":
        inputs = ("prepare", cfg.rl.start)
    if stage == "eval" and cfg.engine.name in LOCAL and cfg.model.path is None:
        inputs += ("adapt",)  # a model from nothing, untrained, knows nothing and has no tokenizer
    if stage == "eval" and cfg.eval.chains == GIVEN:
        inputs += ("chains",)
    return inputs


def order(cfg: Config) -> tuple[str, ...]:
    """The curriculum with these settings: where `rl` starts from `adapt`, nothing needs `reason`
    and what leads to it."""
    left_out = ("graph", "chains", "reason") if cfg.rl.start == "adapt" else ()
    return tuple(stage for stage in ORDER if stage not in left_out)


def home(cfg: Config) -> Path:
    """The folder that holds the stages of this experiment and variant."""
    return Path(cfg.output_root) / cfg.name / (cfg.variant or "")


def folder_of(cfg: Config, stage: str) -> Path:
    """Where a stage's result is or will be."""
    return home(cfg) / stage


def short(name: str) -> str:
    """The last part of a model's path or of its name on the hub."""
    return name.rstrip("/").split("/")[-1]


def data_is_open(prepare: Path) -> bool:
    """Whether the records of a finished `prepare` may be shown to anyone: what it has decided
    (`records/openness.py`), whatever a later command says. Those of a version that decided nothing
    are closed."""
    decided = prepare / "open.json"
    return decided.exists() and read_json(decided)["open"] is True


def is_finished(folder: Path) -> bool:
    return (folder / "metrics.json").exists()


def find_inputs(cfg: Config, stage: str) -> dict[str, Path]:
    """The finished folders that `stage` reads: `inputs.<stage>` where given, else beside it, else
    where the same was made before (`made`).

    Raises MissingRunError that names every missing one.
    """
    found: dict[str, Path] = {}
    missing = []
    required, possible = needed(cfg, stage), OPTIONAL_INPUTS.get(stage, ())
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


def brings_chains(found: Mapping[str, Path]) -> bool:
    """Whether the records brought chains (`stages/given_chains.py`)."""
    return "prepare" in found and (found["prepare"] / "chains.jsonl").exists()


def _others(cfg: Config, stage: str) -> str:
    """What tells the experiment's finished runs of a stage from the one that is missing."""
    near = [*above(cfg, stage), *elsewhere(cfg, stage, others=False)]
    told = (
        (folder, differences(cfg, stage, folder, {}))
        for folder in dict.fromkeys(near)
        if is_finished(folder)
    )
    return "".join(
        f"; {folder} was made with other settings ({'; '.join(found[:3])})"
        for folder, found in islice(((f, d) for f, d in told if d), TOLD)
    )


def above(cfg: Config, stage: str) -> list[Path]:
    """Where a stage's result would be in the variants above this one."""
    depth = len(Path(cfg.variant or "").parts)
    return [folder / stage for folder in list(home(cfg).parents)[:depth] if depth]


def elsewhere(cfg: Config, stage: str, others: bool) -> Iterator[Path]:
    """Finished runs of a stage in all variants of the experiment, then those of `others`."""
    root = Path(cfg.output_root)
    for begin in (cfg.name, *(["*"] if others else [])):
        for depth in range(DEEPEST + 1):
            for folder in sorted(root.glob("/".join([begin, *["*"] * depth, stage]))):
                if is_finished(folder):
                    yield folder


def made(cfg: Config, stage: str, reader: str) -> Path:
    """Where a stage's result is or will be: in this variant, or in one above it (`no_graph/both` is
    below `no_graph`, and that below the experiment), or in any other of the experiment, where it
    was made as this one would make it: with the same settings, from the same inputs.

    Variants thus share what they do not change, and experiments what they prepare. What an
    evaluation on a benchmark's own records asks was not made from them: of its models the settings
    alone are compared, where the variant differs in nothing but its data.
    """
    own = folder_of(cfg, stage)
    near = [folder for folder in above(cfg, stage) if is_finished(folder)]
    others = stage == "prepare" and stage in needed(cfg, reader)
    if is_finished(own) or not (near or any(elsewhere(cfg, stage, others))):
        return own
    model = reader == "eval" and stage != "prepare"
    try:
        benchmark = model and cfg.data.name in BENCHMARKS & {Path(cfg.variant or "").name}
        inputs = {} if benchmark else find_inputs(cfg, stage)
    except UserError:
        return own
    # a model may be asked in other words than it was trained in (`stages/eval.py` says so)
    besides = frozenset({"wording"} if reader == "eval" else ())
    same = (f for f in near if not differences(cfg, stage, f, inputs, besides=besides))
    far = (
        folder
        for folder in elsewhere(cfg, stage, others)
        if not differences(cfg, stage, folder, inputs, rooted=True, besides=besides)
    )
    return next(chain(same, far), own)


@contextmanager
def opened(cfg: Config, stage: str, variant_hint: str = "") -> Iterator[Run | None]:
    """The run folder of `stage`, locked; None where the run is finished already.

    With `overwrite=true` the earlier run is put aside and comes back if the new one fails before
    it is finished.
    Raises UserError for a folder made with other settings or in use by another process.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), folder):
        previous = folder.with_name(f".{folder.name}.previous")
        if previous.exists():
            remove(folder)
            previous.rename(folder)
        begun = (folder / "config.yaml").exists()
        if begun and not cfg.overwrite and stage not in ALWAYS_AGAIN:
            _refuse_other_settings(cfg, stage, folder, inputs)
            if is_finished(folder):
                yield None
                return
        elif folder.exists():
            folder.rename(previous)
        run = Run(folder, stage, inputs, resuming=begun and folder.exists())
        _describe(cfg, run)
        try:
            yield run
        except BaseException as error:
            # an audit that finds a leak fails when it is done: its files say where
            if is_finished(folder):
                remove(previous)
                raise
            # what a wrong setting or file left behind must not refuse the corrected command
            if previous.exists() or (isinstance(error, UserError) and not run.resuming):
                remove(folder)
            if previous.exists():
                previous.rename(folder)
            raise
        remove(previous)


@contextmanager
def joined(cfg: Config, stage: str, member: int) -> Iterator[Run | None]:
    """The folder of a stage that several processes make together; this one is `member`.

    None where the run is finished. Raises UserError as `opened` does; nothing is ever removed.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = folder.with_name(f".{folder.name}-{member}.lock")
    with (
        _locked(folder.with_name(f".{folder.name}.lock"), folder, shared=True),
        _locked(own, folder),
    ):
        begun = (folder / "config.yaml").exists()
        if begun:
            _refuse_other_settings(cfg, stage, folder, inputs)
        if is_finished(folder):
            yield None
            return
        run = Run(folder, stage, inputs, resuming=begun)
        _describe(cfg, run)
        yield run


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The lock of a run's folder; raises FolderInUseError where another process works in it."""
    with _locked(folder.with_name(f".{folder.name}.lock"), folder):
        yield


def finish(run: Run, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, which marks the run as finished. Values are numbers, names flat."""
    # again: only now the libraries that computed them are loaded, with the kernels they chose
    write_text(run.folder / "environment.txt", _environment())
    write_json(run.folder / "metrics.json", metrics)


def made_from(folder: Path, name: str, source: Path) -> bool:
    """Whether the finished run in `folder` has read its input `name` from `source` as it is now."""
    return bool(read_json(folder / "inputs.json").get(name) == _fingerprint(source))


def metrics_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


@contextmanager
def _locked(lock: Path, folder: Path, shared: bool = False) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                f"{folder} is in use by another process: wait for it, or set variant=NAME"
            ) from None
        yield


def _describe(cfg: Config, run: Run) -> None:
    """Write what this run is made from, config last: its presence says that the run has begun."""
    run.folder.mkdir(parents=True, exist_ok=True)
    fingerprints = {name: _fingerprint(folder) for name, folder in run.inputs.items()}
    write_json(run.folder / "inputs.json", fingerprints)
    write_text(run.folder / "environment.txt", _environment())
    settings = yaml.safe_dump(cfg.plain(), sort_keys=False, allow_unicode=True)
    write_text(run.folder / "config.yaml", settings)


def _fingerprint(folder: Path) -> str:
    """Tells one making of a run from another: the hash of its settings and metrics."""
    content = (folder / "config.yaml").read_bytes() + (folder / "metrics.json").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _refuse_other_settings(cfg: Config, stage: str, folder: Path, inputs: dict[str, Path]) -> None:
    if told := differences(cfg, stage, folder, inputs):
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(told)}): "
            "set overwrite=true to replace it, or variant=NAME to keep both"
        )


def differences(
    cfg: Config,
    stage: str,
    folder: Path,
    inputs: dict[str, Path],
    rooted: bool = False,
    besides: frozenset[str] = frozenset(),
) -> list[str]:
    """What was asked of the begun run in `folder` and of this one, where that changes the result,
    and which of its finished `inputs` were made anew since. A stage that only reads what was
    prepared may leave out from where, unless the records must be `rooted` in the same folder.
    Settings of `besides` are not compared."""
    # many runs may be looked at: the parser in C is ten times as fast
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    there: Any = yaml.load(text, Loader=yaml.CSafeLoader)
    wanted = cfg.plain()
    left_out = set(besides)
    if cfg.data.root is None and cfg.data.name != "synthetic" and not rooted:
        left_out.add("data.root")
    found = []
    for section in RESULT_SETTINGS[stage]:
        now, then = flat(wanted[section], section), flat(there.get(section), section)
        found += [
            f"{key}: {then.get(key)} there, {now.get(key)} now"
            for key in sorted((now.keys() | then.keys()) - NOT_COMPARED - left_out)
            if now.get(key) != then.get(key)
        ]
    recorded = read_json(folder / "inputs.json")
    found += [
        f"its input '{name}' has changed since"
        for name, path in inputs.items()
        if recorded.get(name) != _fingerprint(path)
    ]
    return found


def flat(value: Any, prefix: str) -> dict[str, Any]:
    """Settings by their whole names: `adapt.lr`."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, one in value.items() for k, v in flat(one, f"{prefix}.{key}").items()}


def _environment() -> str:
    # the folders' names say it all: parsing every package's metadata takes a third of a second
    installed = {info.stem for path in sys.path for info in Path(path).glob("*.dist-info")}
    packages = sorted("==".join(name.rsplit("-", 1)) for name in installed)
    lines = [f"python {platform.python_version()}", platform.platform(), " ".join(sys.argv)]
    return "\n".join([*lines, *_kernels(), *packages]) + "\n"


def _kernels() -> list[str]:
    """The processor, and the kernels and threads that the numerical libraries which this process
    has loaded chose for it: what the last digits of a result depend on."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line for line in described.splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    lines = [f"processor {name or platform.machine()}"]
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_info

        lines += [
            f"{pool['internal_api']} {pool.get('architecture') or ''}".strip()
            + f", {pool['num_threads']} threads"
            for pool in threadpool_info()
        ]
    if "torch" in sys.modules:
        import torch

        capability = torch.backends.cpu.get_cpu_capability()
        lines.append(f"torch {capability}, {torch.get_num_threads()} threads")
    return lines
