"""Estimate the cost of checkpoints: bytes, seconds, share of the run time, disk space."""

from dataclasses import dataclass
from math import ceil

SPACING = 20
"""Minimum interval between two saves, as a multiple of the duration of a save.

Saving therefore takes at most one twenty-first of the time, whatever the model's size.
"""


def pause(save_seconds: float, took: float) -> float:
    """Return the seconds between the end of a save and the beginning of the next one.

    took: duration of the save in seconds. The result is 0 if `save_seconds` is 0: then every step
    is followed by a save, whatever it costs.
    """
    return max(save_seconds, SPACING * took) if save_seconds else 0.0


def checkpoint_bytes(stage: int, low: int, learnt: int, matrices: int = 0) -> int:
    """Return the size of a checkpoint in bytes, summed over all processes.

    For the `learnt` parameters it contains float32 weights and AdamW's two float32 moments;
    `matrices` of them have the single moment of Muon. ZeRO-1 and 2 (`stage`) also store the model's
    own weights, `low` bytes each, beside those of the optimizer; ZeRO-3 does not. Frozen weights
    are not saved.
    """
    own = low * learnt if stage in (1, 2) else 0
    return own + 12 * learnt - 4 * matrices


@dataclass(frozen=True, slots=True)
class Saving:
    """The cost of a run's checkpoints.

    size: bytes of one checkpoint. seconds: time to write it. pause: seconds of training until the
    next save begins. kept: number of best checkpoints kept in addition to the last. every: seconds
    of training between two evaluations, after which a checkpoint is saved at once if it is among
    the best; None if none is kept.
    """

    size: int
    seconds: float
    pause: float
    kept: int = 0
    every: float | None = None

    @property
    def share(self) -> float:
        """Return the maximum share of the run time spent on saving.

        It is reached if the result of every evaluation is among the best and saved.
        """
        trained = self.pause if self.every is None else self.every
        saving = self.seconds * ceil(trained / self.pause)  # saves between evaluations
        return saving / (trained + saving)

    @property
    def room(self) -> int:
        """Return the disk space in bytes.

        It is that of the last checkpoint, the one being written, and the best.
        """
        return (2 + self.kept) * self.size
