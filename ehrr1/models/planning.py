"""Plan a training stage on a cluster: memory of a GPU and duration of the run.

`cfg.plan` selects the stage and sets the assumptions, `cfg.cluster` describes the machines.
Lengths, batches and epochs are the stage's own settings.
"""

from dataclasses import dataclass
from math import ceil

from ehrr1.config.schema import Config, value_of
from ehrr1.config.training import RL, Adapt, Reason, TrainerSettings
from ehrr1.models import flops
from ehrr1.models.activations import Bytes, LayerWork
from ehrr1.models.memory import (
    STAGES,
    Load,
    Memory,
    TreeShape,
    activations,
    anatomy,
    memory,
    most_trees,
    precision_bytes,
    work,
)
from ehrr1.models.rollout_time import Engines, engine_room, engines, phases
from ehrr1.models.saving import Saving, checkpoint_bytes, pause
from ehrr1.models.sizes import GIB
from ehrr1.tasks.selection import LEARNABLE, RISK

TRAINERS = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload")

RELEASED = {"adapt": 3_500_000, "reason": 300_000, "rl": 500 * len(LEARNABLE)}
"""Samples of the released training sets, for settings without a number per task."""


@dataclass(frozen=True, slots=True)
class Time:
    """The duration of a run: its steps, the work of one step, and the GPUs that share it.

    `phases` are the seconds of a step of rl by phase; other stages have none.
    """

    steps: int
    trees_per_step: int
    tokens_per_step: float
    seconds_per_step: float
    gpus: int
    phases: dict[str, float]


class Planner:
    """A planner of `cfg.plan.stage` for any trainer.

    Activations are measured once for each way of computing.
    """

    def __init__(self, cfg: Config):
        self.cfg, self.stage = cfg, cfg.training(cfg.plan.stage)
        self.rl = cfg.plan.stage == "rl"
        self.body = anatomy(cfg.model)
        self.shape = tree(cfg)
        self.parts = parts(cfg) if self.rl else 1
        self._measured: dict[LayerWork, Bytes] = {}

    def title(self) -> str:
        """Return a title with stage, model, strategy, precision, GPUs and batch."""
        cfg, branches = self.cfg, self.shape.branches
        return (
            f"{cfg.plan.stage} of {cfg.model.name} ({self.body.base:,} parameters) by "
            f"{cfg.trainer.strategy}, {cfg.trainer.precision}, {self.gpus(cfg.trainer)} GPUs, "
            f"{cfg.plan.micro_batch} x ({self.shape.trunk:,} + {len(branches)} x {branches[0]:,}) "
            "tokens a GPU"
        )

    def gpus(self, trainer: TrainerSettings) -> int:
        """Return the number of GPUs; trainer=single uses one, whatever the cluster has."""
        return 1 if trainer.strategy == "single" else int(self.cfg.cluster.gpus)

    def memory(self, trainer: TrainerSettings, trees: int | None = None) -> Memory:
        """Return the memory of one GPU that computes `trees` trees at a time.

        The default is `plan.micro_batch`.
        """
        how = work(trainer, self.cfg.model.attention, self.shape)
        if how not in self._measured:
            self._measured[how] = activations(self.cfg.model, trainer, self.body, self.shape)
        load = self._load(trees or self.cfg.plan.micro_batch)
        return memory(self.body, trainer, self.gpus(trainer), self._measured[how], load)

    def _load(self, trees: int) -> Load:
        rows, length = 0, 0
        rollout = self.cfg.rollout
        if self.rl and rollout.name == "transformers":
            group = self.cfg.rl.group_size
            rows = group * max(1, min(trees, rollout.batch_size // group))
            length = self.generated_tokens
        return Load(
            trees,
            self.shape,
            generated=rows,
            generated_tokens=length,
            engine=self.engine_share,
            engine_reserved=self.cfg.cluster.engine_reserved_gib * GIB,
            entropy=self.rl,
            reference=self.rl and self.cfg.rl.beta > 0,
            muon=self.stage.optimizer == "muon",
            reserved=self.cfg.cluster.reserved_gib * GIB,
        )

    @property
    def generated_tokens(self) -> int:
        """Return the number of tokens of the longest prompt with the longest completion."""
        return self.cfg.rl.max_prompt_tokens + self.cfg.rl.max_completion_tokens

    @property
    def engine_share(self) -> float:
        """Return the bytes of a GPU that `rollout=vllm` takes for itself; 0 without it."""
        beside = self.rl and self.cfg.rollout.name == "vllm"
        return engine_room(self.cfg) if beside else 0.0

    @property
    def engines(self) -> Engines:
        """Return the engines that write completions in `rl`."""
        return engines(self.cfg, self.body, self.gpus(self.cfg.trainer))

    def engines_fit(self) -> bool:
        """Return whether each engine of `rl` has memory for weights and one completion."""
        return not self.rl or self.engines.holds >= 1

    def on_cpu(self, found: Memory) -> float:
        """Return the GiB of a node's CPU memory that the shares of its GPUs take."""
        return found.cpu * min(self.cfg.cluster.gpus, self.cfg.cluster.gpus_per_node) / GIB

    def fits(self, trainer: TrainerSettings) -> bool:
        """Return whether training and generation fit the memory of GPU and CPU."""
        if not self.engines_fit():
            return False
        found, room = self.memory(trainer), self.cfg.cluster.cpu_memory_gib
        on_cpu = room is None or self.on_cpu(found) <= room
        return on_cpu and found.total / GIB <= self.cfg.cluster.gpu_memory_gib

    def largest(self, trainer: TrainerSettings) -> int:
        """Return the maximum number of trees at a time that fit a GPU; 0 if none fits."""
        if not self.engines_fit():
            return 0
        room = self.cfg.cluster.gpu_memory_gib * GIB
        return most_trees(lambda trees: self.memory(trainer, trees).total, room)

    def smallest_stage(self) -> int:
        """Return the first ZeRO stage that fits (0: ddp suffices), or -1 if none does."""
        trainer = self.cfg.trainer
        for strategy in ("ddp", "zero1", "zero2", "zero3"):
            tried = other(trainer, strategy)
            tried.offload = trainer.offload and STAGES[strategy] > 0
            if self.fits(tried):
                return STAGES[strategy]
        return -1

    @property
    def step_setting(self) -> str:
        """Return the name of the setting for the number of trees per optimizer step."""
        return "rl.prompts_per_step" if self.rl else f"{self.cfg.plan.stage}.trees_per_step"

    @property
    def asked_trees(self) -> int:
        """Return the configured number of trees per optimizer step."""
        return int(value_of(self.cfg, self.step_setting))

    def time(self) -> Time:
        """Return the steps of the run and the duration of one.

        Processes share a step's trees evenly, so that their number is rounded up to a multiple of
        the processes.
        """
        cfg, gpus = self.cfg, self.gpus(self.cfg.trainer)
        each = ceil(self.asked_trees / gpus)
        mean = tree(cfg, cfg.plan.fill)
        operations = each * self.parts * self._operations(mean)
        peak = cfg.cluster.peak_tflops * 1e12 * cfg.plan.utilisation
        found = phases(cfg, self.body, gpus, operations) if self.rl else {}
        serving = cfg.plan.servers * cfg.plan.server_gpus
        return Time(
            steps=steps(cfg, each * gpus),
            trees_per_step=each * gpus,
            tokens_per_step=each * gpus * mean.tokens * self.parts,
            seconds_per_step=sum(found.values()) if found else operations / peak,
            gpus=gpus + (serving if self.rl and cfg.rollout.name == "vllm_server" else 0),
            phases=found,
        )

    def saving(self, seconds_per_step: float) -> Saving:
        """Return the cost of checkpoints.

        A checkpoint is written at the end of a step, so that the pause between two is at least the
        duration of a step. rl keeps no best checkpoints.
        """
        trainer, stage = self.cfg.trainer, self.stage
        size = checkpoint_bytes(
            STAGES[trainer.strategy],
            precision_bytes(trainer),
            self.body.learnt,
            self.body.layers_learnt if stage.optimizer == "muon" else 0,
        )
        seconds = size / (self.cfg.cluster.write_gb_per_second * 1e9)
        wait = max(pause(stage.save_seconds, seconds), seconds_per_step)
        if isinstance(stage, RL) or not trainer.save_top_k or stage.eval_every is None:
            return Saving(size, seconds, wait)
        return Saving(size, seconds, wait, trainer.save_top_k, stage.eval_every * seconds_per_step)

    def _operations(self, mean: TreeShape) -> float:
        """Return the operations by which one GPU learns from one tree."""
        learning = flops.training(self.body, mean, self.cfg.trainer.activation_checkpointing)
        if self.rl and self.cfg.rl.beta > 0:
            learning += flops.forward(self.body, mean)
        return learning


def other(trainer: TrainerSettings, name: str) -> TrainerSettings:
    """Return a trainer with another strategy, one of `TRAINERS`.

    Precision and checkpointing stay the same.
    """
    strategy, _, offload = name.partition("_")
    return trainer.model_copy(update={"strategy": strategy, "offload": bool(offload)})


def tree(cfg: Config, fill: float = 1.0) -> TreeShape:
    """Return the shape of a tree of the stage's maximum length, scaled by `fill`."""
    name = cfg.plan.stage
    if name == "rl":
        trunk, branch = cfg.rl.max_prompt_tokens, cfg.rl.max_completion_tokens
        count, record_learnt = ceil(cfg.rl.group_size / parts(cfg)), False
    else:
        branch = cfg.plan.answer_tokens.of(name)
        trunk = cfg.supervised(name).max_tokens - branch
        count, record_learnt = cfg.plan.questions, cfg.loss.on == "all"
    trunk, branch = ceil(trunk * fill), ceil(branch * fill)
    return TreeShape(trunk, (branch,) * count, count * branch + trunk * record_learnt)


def parts(cfg: Config) -> int:
    """Return the number of trees per group of maximum length, to fit `rl.max_batch_tokens`."""
    rl = cfg.rl
    fitting = max(1, (rl.max_batch_tokens - rl.max_prompt_tokens) // rl.max_completion_tokens)
    return ceil(rl.group_size / fitting)


def steps(cfg: Config, trees_per_step: int) -> int:
    """Return the number of optimizer steps of the whole run."""
    if cfg.plan.stage == "rl":
        return cfg.rl.steps or ceil(samples(cfg) / trees_per_step)
    settings = cfg.supervised(cfg.plan.stage)
    trees = ceil(samples(cfg) / cfg.plan.questions)
    return settings.max_steps or settings.epochs * ceil(trees / trees_per_step)


def samples(cfg: Config) -> int:
    """Return the number of samples of the run (rl: prompts), assuming tasks with enough samples."""
    name, settings = cfg.plan.stage, cfg.training(cfg.plan.stage)
    if cfg.plan.samples is not None:
        return int(cfg.plan.samples)
    if settings.samples_per_task is None:
        return RELEASED[name]
    number = len(LEARNABLE) * settings.samples_per_task
    if isinstance(settings, Adapt) and settings.decision_samples_per_task is not None:
        fewer = settings.samples_per_task - settings.decision_samples_per_task
        number -= (len(LEARNABLE) - len(RISK)) * fewer
    if isinstance(settings, Reason) and settings.direct_share < 1:
        number = round(number / (1 - settings.direct_share))
    return number
