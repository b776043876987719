"""Samples on which the baselines' hyper-parameters are chosen."""

from collections.abc import Sequence
from zlib import crc32

from ehrr1.tasks.samples import Sample

HELD_OUT = 5
"""One in this many training patients is held out if a task has no validation samples."""


def by_task(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Group samples by task, in the order of the tasks' names."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.task, []).append(sample)
    return dict(sorted(found.items()))


def fitted_and_tuned(
    train: Sequence[Sample], validation: Sequence[Sample]
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of one task to fit to, and those to choose the hyper-parameters on.

    They are the training and the validation samples. Without validation samples, the training
    patients are divided.
    """
    if validation:
        return list(train), list(validation)
    held = [crc32(str(sample.subject_id).encode()) % HELD_OUT == 0 for sample in train]
    return (
        [sample for sample, is_held in zip(train, held, strict=True) if not is_held],
        [sample for sample, is_held in zip(train, held, strict=True) if is_held],
    )
