"""The base of both Lightning modules: the model, its optimizer and schedule, one update."""

from collections.abc import Callable, Mapping, Sequence
from math import cos, isfinite, pi
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ehrr1 import parallel
from ehrr1.config.training import Optimization
from ehrr1.models.loading import Sharding
from ehrr1.models.prune_last_layer import decoder_layers
from ehrr1.prompts.forest import Forest
from ehrr1.training.strategies import forward, row, sharding, step, steps_on_cpu
from ehrr1.training.targets import create, find

Build = Callable[[Sharding | None], PreTrainedModel]
"""Builds the model: under ZeRO-3 in the context that divides it among the processes."""

Schedule = Callable[[int, float], Callable[[int], float]]
"""(optimizer steps of the run, share of them for warm-up) -> the learning rate's factor by step."""


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the learning rate's factor by step: linear over a share `warmup`, then cosine to 0."""
    rising = max(round(steps * warmup), 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + cos(pi * min((step - rising + 1) / max(steps - rising, 1), 1.0)))

    return factor


def make_optimizers(
    model: PreTrainedModel, settings: Optimization, on_cpu: bool = False
) -> list[Optimizer]:
    """Return the optimizers of a model's trainable weights.

    `adamw` is one; `muon` is Muon (Jordan et al., 2024) for the layers' matrices and AdamW for
    embeddings, head and norms. Muon's steps are scaled to the size of AdamW's (Liu et al., arXiv
    2502.16982), so that one learning rate serves both. Another class (`_target_`) gets all weights,
    `lr` and `weight_decay`. With `on_cpu` DeepSpeed's own AdamW steps on the CPU while the model is
    on a GPU.
    """
    learnt = [p for p in model.parameters() if p.requires_grad]
    if isinstance(settings.optimizer, dict):
        return [
            create(
                "optimizer",
                settings.optimizer,
                Optimizer,
                learnt,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
            )
        ]
    layers = {id(p) for p in decoder_layers(model).parameters() if p.ndim == 2}
    matrices = [p for p in learnt if id(p) in layers and settings.optimizer == "muon"]
    chosen = {id(p) for p in matrices}
    rest = [p for p in learnt if id(p) not in chosen]
    given: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (0.9, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    if on_cpu:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return [DeepSpeedCPUAdam(rest, **given)]
    adamw = AdamW(rest, **given, fused=True)
    if not matrices:
        return [adamw]
    muon = Muon(
        matrices,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def find_schedule(settings: Optimization) -> Schedule:
    """Return the function that `schedule` names. Raises UserError."""
    if settings.schedule == "cosine":
        return warmup_cosine
    schedule: Schedule = find(f"schedule={settings.schedule}", settings.schedule)
    return schedule


def _listed(one_or_many: Any) -> list[Any]:
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]


class ForestModule(LightningModule):
    """A causal language model that learns from forests, one optimizer step per training step.

    Optimisation is manual: a step's trees may come in several rows, on several processes, each
    divided by the whole step's weight. `build` builds the model when the strategy is ready for it
    (`models/loading.py`); `settings` holds optimizer, schedule, lr, warmup (a share of the steps),
    weight_decay, beta2, clip; `updates` is the number of optimizer steps of the run.
    """

    model: PreTrainedModel

    def __init__(self, build: Build, settings: Optimization, updates: int):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint has no frozen weights
        self.build, self.settings, self.updates = build, settings, updates
        self.watched: dict[str, float] = {}  # in the last step
        self.evaluated: dict[str, float] = {}  # in the last evaluation, by the metrics' names

    def configure_model(self) -> None:
        """Build the model."""
        if "model" not in self._modules:
            self.model = self.build(sharding(self))

    def configure_optimizers(self) -> Any:
        """Return optimizers and their learning rate schedules."""
        factor = find_schedule(self.settings)(self.updates, self.settings.warmup)
        return [
            {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}
            for optimizer in make_optimizers(self.model, self.settings, steps_on_cpu(self))
        ]

    def forward(self, loss: Callable[[Forest], Tensor], forest: Forest) -> Tensor:
        """Return `loss(forest)`: the call that DeepSpeed's engine makes for each row."""
        return loss(forest)

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Log a step's metrics, for callbacks under their names in `trainer.callback_metrics`.

        `TrainLog` writes them to train.jsonl and to the loggers, with the step's speed.
        """
        self.watched = dict(metrics)
        self.log_dict(self.watched, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out of a checkpoint."""
        learnt = {name for name, weights in self.named_parameters() if weights.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in learnt}

    def update(
        self, forests: Sequence[Forest], loss: Callable[[Forest], Tensor]
    ) -> dict[str, float]:
        """Take one optimizer step on the sum of `loss` over the rows of all processes.

        Returns `loss`, `grad_norm` and `lr`. Raises FloatingPointError with step and samples if
        the loss or the gradient is not finite; no step is taken then.
        """
        optimizers: list[Any] = _listed(self.optimizers())
        schedules: list[Any] = _listed(self.lr_schedulers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        own = 0.0
        for number, forest in enumerate(forests, 1):
            with row(self, last=number == len(forests)):
                part = forward(self, loss, forest)
                self._check("loss", part.item(), [forest])
                # the strategies average over processes: a sum is wanted
                self.manual_backward(part * self.trainer.world_size)
            own += part.item()
        rate = optimizers[0].param_groups[0]["lr"]
        norm = step(self, optimizers, self.settings.clip)
        self._check("gradient's norm", norm, forests)
        for schedule in schedules:
            schedule.step()
        [total] = parallel.totals([own])
        return {"loss": total, "grad_norm": norm, "lr": rate}

    def _check(self, what: str, value: float, forests: Sequence[Forest]) -> None:
        if not isfinite(value):
            names = ", ".join(dict.fromkeys(n for forest in forests for n in forest.sample_ids))
            raise FloatingPointError(
                f"step {self.trainer.global_step + 1}: the {what} is {value} for samples {names}"
            )
