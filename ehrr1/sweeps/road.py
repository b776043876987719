"""One point of a grid, and its runs: folder, command and inputs of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrr1 import parallel
from ehrr1.config.learning import ahead, names_code
from ehrr1.config.names import ORDER, TRAINING
from ehrr1.config.schema import Config, value_of
from ehrr1.config.together import READ_BY
from ehrr1.config.training import Devices, LocalLauncher
from ehrr1.runs import differences, is_finished, made, needed, optional
from ehrr1.spelling import PLACES, folder_word, level_name, quoted


@dataclass(frozen=True)
class Setting:
    """One override of one point, such as `rl.lr=1e-5`."""

    key: str
    text: str
    value: Any
    swept: bool
    group: bool


Point = tuple[Setting, ...]
"""The settings of one point of the grid."""


@dataclass(frozen=True)
class Planned:
    """One stage of one point.

    inputs: stage -> folder that is read. settings: the swept settings on which the run depends.
    """

    stage: str
    folder: Path
    overrides: tuple[str, ...]
    inputs: dict[str, Path]
    settings: dict[str, str]
    cfg: Config


def read_by(cfg: Config, stage: str) -> tuple[str, ...]:
    """Return the stages that a stage reads, including optional ones."""
    return tuple(dict.fromkeys(needed(cfg, stage) + optional(cfg, stage)))


@dataclass(frozen=True)
class Road:
    """The stages of one point.

    stages_of: text of a setting -> stages that it affects. keys: key of a setting -> stages that
    any of its values affects. plain: the configuration of the experiment alone.
    """

    cfg: Config
    point: Point
    stages_of: dict[str, frozenset[str]]
    keys: dict[str, frozenset[str]]
    plain: Config

    def run(self, stage: str, asked: Sequence[str]) -> Planned:
        """Return this point's run of a stage: its folder, command, and inputs."""
        inputs = self.inputs(stage, asked)
        kept = [s for s in self.point if self.told_to(s, stage, asked)]
        overrides = [f"stage={stage}", *(s.text for s in kept)]
        if variant := self.variant(stage):
            overrides.append(f"variant={quoted(variant)}")
        overrides += [f"inputs.{name}={quoted(str(path))}" for name, path in inputs.items()]
        told = {
            s.key: s.text.partition("=")[2]
            for s in self.point
            if s.swept and (s.key == "experiment" or stage in self.keys[s.key])
        }
        return Planned(stage, self.folder(stage), tuple(overrides), inputs, told, self.cfg)

    def told_to(self, setting: Setting, stage: str, asked: Sequence[str]) -> bool:
        """Return whether the command of a stage includes the setting.

        It includes fixed settings, and swept ones of which any value affects the stage.
        """
        if setting.key == "variant" or stage not in READ_BY.get(setting.key, (stage,)):
            return False
        if setting.key == "seed":
            trains = any(name in TRAINING for name in asked)
            return stage in TRAINING or not trains
        # also with the experiment's own value, so that TensorBoard's table shows it
        return not setting.swept or setting.key in PLACES or stage in self.keys[setting.key]

    def variant(self, stage: str) -> str:
        """Return the path below the experiment that identifies the settings of a stage.

        Settings that affect an earlier stage come first.
        """
        levels: dict[int, list[Setting]] = {}
        for setting in self.point:
            where = self.stages_of[setting.text]
            if stage in where and not self.fills(setting):
                first = min(ORDER.index(name) for name in where)
                levels.setdefault(first, []).append(setting)
        parts = [
            level_name([(folder_word(s.text), s.swept) for s in levels[level]])
            for level in sorted(levels)
        ]
        return "/".join([*([str(self.cfg.variant)] if self.cfg.variant else []), *parts])

    def fills(self, setting: Setting) -> bool:
        """Return whether a setting is a text that the experiment leaves open.

        An example is `data.root=DIR`. It is not part of the folder's name; otherwise the sweep
        would not find runs of `run.py`.
        """
        text = not (setting.swept or setting.group) and isinstance(setting.value, str)
        return text and value_of(self.plain, setting.key) is None

    def other_settings(self, planned: Planned) -> list[str]:
        """Return the differences from the settings of an existing run in the folder."""
        if not (planned.folder / "config.yaml").exists():
            return []
        cfg = self.cfg.model_copy(deep=True)
        if not any(override.startswith("seed=") for override in planned.overrides):
            cfg.seed = self.plain.seed
        cfg.trainer.devices = devices_of(cfg, planned.stage)
        if told := differences(cfg, planned.stage, planned.folder, {}):
            return [
                f"{planned.folder} was made with other settings ({'; '.join(told)}): remove it, or "
                "set variant=NAME to keep both"
            ]
        return []

    def refused(self, planned: Planned) -> list[str]:
        """Return what a training stage would refuse, which only other stages' runs precede."""
        stage = planned.stage
        if self.cfg.tokenise_only:
            return ["tokenise_only=true: no stage is finished by it; start it by run.py"]
        if stage not in TRAINING or is_finished(planned.folder):
            return []
        trainer = self.cfg.trainer.model_copy(update={"devices": devices_of(self.cfg, stage)})
        problems = ahead(self.cfg, stage, parallel.wanted(trainer))
        if names_code(self.cfg, stage):
            from ehrr1.training.checks import wrong_code  # torch is slow to import

            problems += wrong_code(self.cfg, stage)
        return problems

    def folder(self, stage: str) -> Path:
        """Return the folder of this point's run of a stage."""
        return Path(self.cfg.output_root) / self.cfg.name / self.variant(stage) / stage

    def inputs(self, stage: str, asked: Sequence[str]) -> dict[str, Path]:
        """Return the folders that a stage reads, except those that the settings name.

        Optional inputs are included if they are requested or finished.
        """
        required = needed(self.cfg, stage)
        found = {
            name: self.folder(name) if name in asked else self.there(name, stage)
            for name in read_by(self.cfg, stage)
            if self.cfg.inputs.of(name) is None
        }
        return {
            name: folder
            for name, folder in found.items()
            if name in required or name in asked or is_finished(folder)
        }

    def there(self, stage: str, reader: str) -> Path:
        """Return the folder of a stage that is not requested.

        This is its own folder or one above it in which it was made with the same settings, for
        example by `run.py`.
        """
        cfg = self.cfg.model_copy(deep=True)
        cfg.variant, cfg.seed = self.variant(stage), self.plain.seed
        cfg.trainer.devices = devices_of(cfg, stage)
        return made(cfg, stage, reader)


def devices_of(cfg: Config, stage: str) -> Devices:
    """Return `trainer.devices` of a run's command.

    On SLURM, `auto` is the number of requested GPUs.
    """
    launcher = cfg.launcher
    if (
        cfg.trainer.devices != "auto"
        or isinstance(launcher, LocalLauncher)
        or stage not in TRAINING
    ):
        return cfg.trainer.devices
    asked = {str(name): job.gpus_per_node for name, job in launcher.stages.items()}.get(stage)
    return max(1, launcher.gpus_per_node if asked is None else asked)
