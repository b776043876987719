"""Weight transfer from the trainer to engines, and the check that the weights have arrived.

Weights go through safetensors files in a folder that both sides can read. This works for an engine
on the same machine and for many on others, executes no code (unlike pickle), and keeps at most one
file's tensors in the trainer's memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ehrr1 import parallel
from ehrr1.files import remove, replacing

FILE_BYTES = 2 * 2**30
"""Size at which the next file begins."""


@contextmanager
def laid_out(
    weights: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype
) -> Iterator[Path]:
    """Write the weights to `folder` for the duration of the context.

    All processes iterate over `weights`; process 0 writes them. The folder is removed after the
    last process has left the context. It stays if a process fails, and the next call replaces it.
    """
    if parallel.rank() == 0:
        write(weights, folder, dtype)
    else:
        for _ in weights:
            pass  # a divided tensor becomes whole only if every process asks for it
    parallel.barrier()
    yield folder
    parallel.barrier()
    if parallel.rank() == 0:
        remove(folder)


def write(
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype: torch.dtype,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write the tensors as `dtype` into files of about `file_bytes`; the folder appears whole."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        held: dict[str, Tensor] = {}
        files = 0
        for name, tensor in weights:
            # a copy: the tensor may be gone when the next one is asked for
            held[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
            if sum(one.nbytes for one in held.values()) >= file_bytes:
                save_file(held, temporary / f"{files:05d}.safetensors")
                held, files = {}, files + 1
        if held:
            save_file(held, temporary / f"{files:05d}.safetensors")


def read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that `write` wrote, one at a time, on the CPU."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                yield name, tensors.get_tensor(name)


class OutOfSyncError(RuntimeError):
    """Trainer and engine do not compute the same model."""


SYNC_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest allowed mean difference between the log-probabilities of random tokens, in nats, by the
engine's dtype; the trainer's weights are float32.

In float32 only the order of sums differs: 1e-5 for SmolLM2-135M, 1e-6 for smaller models, while
one missed AdamW step at a rate of 2e-6 shows as 3e-3. In bfloat16 weights and activations are
rounded to 8 bits: 0.07 to 0.08 for SmolLM2-135M (single tokens 0.4). A single missed step is
invisible there; weights that never arrive are detected as they drift apart.
"""


def check_sync(engine: Sequence[float], trainer: Sequence[float], tolerance: float) -> float:
    """Return the mean absolute difference of two lists of log-probabilities, in nats.

    Raises OutOfSyncError where it is above `tolerance`, or not a number.
    """
    gaps = [abs(one - other) for one, other in zip(engine, trainer, strict=True)]
    mean = sum(gaps) / len(gaps)
    if not mean <= tolerance:
        raise OutOfSyncError(
            f"after a sync the engine's log-probabilities differ from the trainer's by {mean:.3g} "
            f"nats on average (at most {max(gaps):.3g}, over {len(gaps)} tokens), more than "
            f"{tolerance:g}: the weights have not arrived, or the engine computes another model"
        )
    return mean
