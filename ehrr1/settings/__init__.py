"""Checks of the composed configuration, all problems at once, before anything expensive.

Hydra knows which settings exist; `table` says which values make sense, the rest which of them go
together. Files, folders and what a stage needs of its data are checked by whoever opens them.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ehrr1.errors import UserError
from ehrr1.runs import BENCHMARKS
from ehrr1.settings.rules import COUNT, POSITIVE, SHARE, Rule
from ehrr1.settings.table import ENGINES, LAUNCHERS, RULES, WRITERS
from ehrr1.settings.together import evaluation, keeping, launching, thinking


def check(cfg: DictConfig) -> None:
    """Raise one UserError that lists every setting with a value that makes no sense."""
    problems = []
    writer = {f"chains.{name}": rule for name, rule in WRITERS.get(cfg.chains.writer, {}).items()}
    engine = {f"engine.{name}": rule for name, rule in ENGINES.get(cfg.engine.name, {}).items()}
    launcher = {f"launcher.{k}": rule for k, rule in LAUNCHERS.get(cfg.launcher.name, {}).items()}
    for name, rule in (RULES | writer | engine | launcher).items():
        value = OmegaConf.select(cfg, name, throw_on_missing=True)
        problem = rule.problem(value)
        if problem:
            problems.append(f"{name}={value}: {problem}")
    if cfg.data.name == "mimic" and cfg.data.root is None:
        problems.append("data.root=null: data=mimic needs the folder with hosp/: data.root=DIR")
    if cfg.data.name in ("meds", "release") and cfg.data.root is None:
        problems.append(f"data.root=null: data={cfg.data.name} needs its folder: data.root=DIR")
    if cfg.data.name in ("ehrshot", "mimiciv_cdm") and cfg.data.root is None:
        problems.append(f"data.root=null: data={cfg.data.name} needs its folder: data.root=DIR")
    if cfg.data.name == "benchmark" and cfg.data.path is None:
        problems.append("data.path=null: data=benchmark needs its file: data.path=FILE.jsonl")
    if cfg.data.name == "benchmark" and not isinstance(cfg.data.balanced, bool):
        problems.append(f"data.balanced={cfg.data.balanced}: choose true or false")
    if cfg.data.name in BENCHMARKS and cfg.data.shard is not None:
        problems.append(f"data.shard={cfg.data.shard}: a benchmark file is read at once; leave out")
    if cfg.data.name in ("meds", "release", *BENCHMARKS) and cfg.data.subjects_file is not None:
        problems.append(
            f"data.subjects_file={cfg.data.subjects_file}: patients are chosen with data=mimic or "
            f"data=synthetic, not with data={cfg.data.name}; leave it out"
        )
    shard, shards = cfg.data.shard, cfg.data.shards
    if not problems and shard is not None and shard >= shards:
        problems.append(
            f"data.shard={shard}: it must be below data.shards={shards}; set data.shards to the "
            "number of processes that share the work"
        )
    if shard is not None and cfg.overwrite:
        problems.append(
            "overwrite=true with data.shard would remove what other processes build: remove the "
            "folder by hand"
        )
    shares = cfg.data.split
    if not problems and shares.validation + shares.test >= 1:
        problems.append(
            f"data.split={OmegaConf.to_container(shares)}: nothing is left to train on; "
            "the two shares must add up to less than 1"
        )
    problems += _adapters(cfg.model.lora)
    problems += keeping(cfg)
    problems += thinking(cfg)
    problems += evaluation(cfg)
    problems += launching(cfg.launcher)
    if problems:
        raise UserError("; ".join(problems))


def _adapters(lora: Any) -> list[str]:
    """What is wrong with `model.lora`, which is null or has four settings."""
    if lora is None:
        return []
    rules: dict[str, Rule] = {"r": COUNT, "alpha": POSITIVE, "dropout": SHARE}
    given = set(lora) if isinstance(lora, DictConfig) else set()  # a text in quotes is none
    if missing := sorted({*rules, "targets"} - given):
        return [
            f"model.lora={lora}: {', '.join(missing)} missing; for example "
            "model.lora='{r: 16, alpha: 32, dropout: 0.0, targets: [q_proj, v_proj]}'"
        ]
    return [
        f"model.lora.{name}={lora[name]}: {problem}"
        for name, rule in rules.items()
        if (problem := rule.problem(lora[name]))
    ]
