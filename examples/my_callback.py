"""A callback of your own: it ends a run whose loss has risen far above its lowest value.

The run is then evaluated, saved and finished with the steps that it has done.
"""

from math import inf
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class Diverged(Callback):
    """Ends training when the loss of a step exceeds `factor` times the lowest one before it."""

    def __init__(self, factor: float = 3.0):
        self.factor = factor
        self.lowest = inf

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *step: Any) -> None:
        """Compare the step's loss, which is the same in all processes."""
        loss = float(trainer.callback_metrics["loss"])
        if loss > self.factor * self.lowest:
            trainer.should_stop = True
        self.lowest = min(self.lowest, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep, so that a resumed run decides as an uninterrupted one."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint has kept."""
        self.lowest = state_dict["lowest"]
