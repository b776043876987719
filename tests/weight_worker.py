"""A worker that takes transfers of weights as an engine's does, without an engine.

    python -m tests.weight_worker RANK

Reads one transfer a line: its offer, the file for its tensors, and the name of a tensor at which it
fails. Answers each with a line.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ehrr1.engines.weight_carriers import Offer
from ehrr1.engines.weight_stream import Receiver


def take(offer: str, rank: int, file: str, refused: str | None) -> str:
    held: dict[str, torch.Tensor] = {}
    try:
        with Receiver(Offer(**json.loads(offer)), rank, torch.device("cpu")) as trainer:
            for name, tensor in trainer.weights():
                if name == refused:
                    raise ValueError(f"{name} does not\nfit")
                held[name] = tensor
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    # views of one bucket, which the file cannot share
    save_file({name: tensor.clone() for name, tensor in held.items()}, Path(file))
    return "taken"


if __name__ == "__main__":
    print("started", flush=True)
    for line in sys.stdin:
        print(repr(take(rank=int(sys.argv[1]), **json.loads(line))), flush=True)
