"""What the supervised and the reinforcement module share: the model, its optimizer, one update."""

from collections.abc import Callable, Sequence
from math import cos, isfinite, pi
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from ehrr1.models.last_layer import decoder_layers
from ehrr1.prompts.forest import Forest


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """The learning rate's factor at each step: linear over a share `warmup`, then cosine to 0."""
    rising = max(round(steps * warmup), 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + cos(pi * min((step - rising + 1) / max(steps - rising, 1), 1.0)))

    return factor


def make_optimizers(model: PreTrainedModel, settings: DictConfig) -> list[Optimizer]:
    """AdamW or, with `optimizer: muon`, Muon (Jordan et al., 2024) for the layers' matrices.

    Muon's steps are scaled to the size of AdamW's (Liu et al., arXiv 2502.16982), so that one
    learning rate serves both; embeddings, head and norms stay with AdamW.
    """
    layers = {id(p) for p in decoder_layers(model).parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in layers and settings.optimizer == "muon"]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adamw = AdamW(
        rest,
        lr=settings.lr,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if not matrices:
        return [adamw]
    muon = Muon(
        matrices,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def _listed(one_or_many: Any) -> list[Any]:
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]


class ForestModule(LightningModule):
    """A causal language model that learns from forests, one optimizer step a training step.

    Optimisation is manual: a step's trees may come in several batches, each divided by the whole
    step's weight. `settings` holds optimizer, lr, warmup (a share of the steps), weight_decay,
    beta2, clip.
    """

    def __init__(self, model: PreTrainedModel, settings: DictConfig, updates: int):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.settings, self.updates = model, settings, updates
        self.watched: dict[str, float] = {}

    def configure_optimizers(self) -> Any:
        factor = warmup_cosine(self.updates, self.settings.warmup)
        return [
            {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, factor)}
            for optimizer in make_optimizers(self.model, self.settings)
        ]

    def update(
        self, forests: Sequence[Forest], loss: Callable[[Forest], Tensor]
    ) -> dict[str, float]:
        """One optimizer step on the sum of `loss` over `forests`; returns loss, grad_norm and lr.

        Raises FloatingPointError where the loss is not finite, with the samples it came from.
        """
        optimizers: list[Any] = _listed(self.optimizers())
        schedules: list[Any] = _listed(self.lr_schedulers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        total = 0.0
        for forest in forests:
            part = loss(forest)
            if not isfinite(part.item()):
                names = ", ".join(dict.fromkeys(forest.sample_ids))
                raise FloatingPointError(f"the loss is {part.item()} for samples {names}")
            self.manual_backward(part)
            total += part.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        rate = optimizers[0].param_groups[0]["lr"]
        optimizers[0].step()
        for optimizer in optimizers[1:]:
            # past Lightning's wrapper, which would count a second step
            optimizer.optimizer.step()
        for schedule in schedules:
            schedule.step()
        return {"loss": total, "grad_norm": norm.item(), "lr": rate}
