"""What a training run's checkpoints cost: bytes, seconds, a share of the time, room on the disk."""

from dataclasses import dataclass
from math import ceil

SPACING = 20
"""A save is followed by the next no sooner than so many times what it took: saving is at most a
twenty-first of the time, whatever the model's size."""


def pause(save_seconds: float, took: float) -> float:
    """Seconds between the end of a save that `took` so many and the next one's begin; 0 where
    `save_seconds` is: a save after every step, whatever it costs."""
    return max(save_seconds, SPACING * took) if save_seconds else 0.0


def checkpoint_bytes(stage: int, low: int, learnt: int, matrices: int = 0) -> int:
    """Bytes of a checkpoint, all processes' parts together.

    Of what is learnt: float32 weights and AdamW's two float32 moments; `matrices` of its parameters
    have Muon's one. ZeRO-1 and 2 (`stage`) lay the model's own weights, `low` bytes each, beside
    those of the optimizer; ZeRO-3 has none of its own. Frozen weights are not saved.
    """
    own = low * learnt if stage in (1, 2) else 0
    return own + 12 * learnt - 4 * matrices


@dataclass(frozen=True, slots=True)
class Saving:
    """The cost of a run's checkpoints.

    `size` bytes each, written in `seconds`; the next begins after `pause` seconds of training.
    `kept` of the best stay beside the last; `every`: seconds of training between two evaluations,
    which are saved at once where they are among the best; None where none is kept.
    """

    size: int
    seconds: float
    pause: float
    kept: int = 0
    every: float | None = None

    @property
    def share(self) -> float:
        """Of the time, at most: if every evaluation is among the best, and then saved."""
        trained = self.pause if self.every is None else self.every
        saving = self.seconds * ceil(trained / self.pause)  # others come in between
        return saving / (trained + saving)

    @property
    def room(self) -> int:
        """Bytes on the disk: the last, the one being written, and the best."""
        return (2 + self.kept) * self.size
