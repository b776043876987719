"""Weights from the trainer to engines: safetensors files in a folder that both see.

Files serve one engine in the same machine and many elsewhere alike, hold no code (unlike pickle),
and keep no more than one file's tensors in the trainer's memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ehrr1 import parallel
from ehrr1.files import remove, replacing

FILE_BYTES = 2 * 2**30
"""How large a file grows before the next one begins."""


@contextmanager
def laid_out(
    weights: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype
) -> Iterator[Path]:
    """All processes read `weights`, process 0 writes them; within, the folder is there for all.

    After the body of the last process it is removed. Where a body fails it stays, to be replaced
    by the next.
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
    """What `write` wrote, one tensor at a time, on the CPU."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                yield name, tensors.get_tensor(name)
