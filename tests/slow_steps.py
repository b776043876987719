"""A callback that makes training slow on any machine, without work."""

import time
from typing import Any

from pytorch_lightning import Callback


class SlowSteps(Callback):
    """Sleep after each step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *given: Any) -> None:
        """Sleep."""
        time.sleep(self.seconds)
