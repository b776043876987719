"""Weight transfer in memory, from one process of the trainer to the workers of an engine.

The trainer packs tensors into buckets. It writes the names and shapes of a bucket to a TCP store,
of which it is the server, waits until every worker is ready, tells them so, and sends the bytes
(`weight_carriers`). Whoever fails or ends before that is noticed, so that nobody waits in a
broadcast for a process that takes no part. Every transfer connects anew: nothing of it stays in
memory while the trainer learns, and an engine may have been restarted. Names and shapes travel as
JSON, and nothing is unpickled; neither the store nor a broadcast is encrypted.

vLLM 0.32.0 has engines for this too (`vllm.distributed.weight_transfer`). They need GPUs, and vLLM
in the trainer's process, which it would patch.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.distributed import TCPStore

from ehrr1.engines.weight_carriers import STALLED, Carrier, Offer, Transport, carrier
from ehrr1.errors import UserError
from ehrr1.parallel import EXCHANGE

BUCKET_BYTES = 2**27
"""Size of a bucket, but for a tensor that is larger alone. Each side holds one or two.

Larger ones are slower on a CPU, whose system hands out their memory anew each time.
"""

PAUSE_SECONDS = (0.001, 0.05)
"""First and longest time between two looks at what workers say and whether the engine runs."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Bucket:
    """Tensors of one dtype, their bytes one after another in `data` (uint8)."""

    names: list[str]
    shapes: list[list[int]]
    dtype: torch.dtype
    data: Tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors by name; they are views of `data`."""
        begin = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            end = begin + torch.Size(shape).numel() * self.dtype.itemsize
            yield name, self.data[begin:end].view(self.dtype).view(shape)
            begin = end


def pack(
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    allocate: Callable[[int], Tensor],
    limit: int,
) -> Iterator[Bucket]:
    """Yield the tensors as `dtype` in buckets of at most `limit` bytes, or of one larger tensor.

    The buckets share a buffer of bytes, which `allocate` returns: each is valid until the next one
    is requested.
    """
    buffer = allocate(limit)
    names: list[str] = []
    shapes: list[list[int]] = []
    used = 0
    for name, tensor in weights:
        size = tensor.numel() * dtype.itemsize
        if names and used + size > limit:
            yield Bucket(names, shapes, dtype, buffer[:used])
            names, shapes, used = [], [], 0
        if size > buffer.numel():
            buffer = allocate(size)
        # at once: the tensor may be gone when the next one is asked for
        buffer[used : used + size].view(dtype).view(tensor.shape).copy_(tensor.detach())
        names.append(name)
        shapes.append(list(tensor.shape))
        used += size
    if names:
        yield Bucket(names, shapes, dtype, buffer[:used])


class Sender:
    """The trainer's end of one transfer, as a context.

    `address` is one of this machine's, which the workers reach. Ask the engine to take `offer`
    before `send`. `check_engine` raises its own error if the engine has ended or refused. An error
    that leaves the context ends the transfer for the workers too.
    """

    def __init__(
        self,
        address: str,
        transport: Transport,
        workers: int,
        device: torch.device,
        check_engine: Callable[[], None],
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, 0), family=family)
        port = listener.getsockname()[1]
        self.store = TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=STALLED,
            master_listen_fd=listener.detach(),  # listens on this address only
        )
        self.offer = Offer(address, port, transport, workers)
        self.device, self.check_engine, self.number = device, check_engine, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for key in ("bucket", "go"):
                self._tell(key, {"failed": f"the trainer ended the transfer ({kind.__name__})"})

    def send(self, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
        """Send the tensors as `dtype`; return when all workers have loaded them.

        Raises UserError if a worker fails or does not answer in time.
        """
        self._await("here")
        with closing(self._attempt(lambda: carrier(self.offer, self.store, 0, self.device))) as way:
            for bucket in pack(weights, dtype, way.allocate, BUCKET_BYTES):
                self._pass(bucket, way)
            self._tell("bucket", {"end": True})
            self._await("done")

    def _pass(self, bucket: Bucket, way: Carrier) -> None:
        described = {
            "names": bucket.names,
            "shapes": bucket.shapes,
            "dtype": str(bucket.dtype).removeprefix("torch."),
            "announced": way.announce(bucket.data),
        }
        self._tell("bucket", described)
        self._await(f"ready/{self.number}")
        self._tell("go", {})
        self._attempt(lambda: way.send(bucket.data))
        self.number += 1

    def _tell(self, key: str, told: dict[str, Any]) -> None:
        self.store.set(f"{key}/{self.number}", json.dumps(told))

    def _await(self, key: str) -> None:
        """Wait until every worker has set its `key`."""
        keys = [f"{key}/{rank}" for rank in range(1, self.offer.workers + 1)]
        deadline = time.monotonic() + STALLED.total_seconds()
        pause, longest = PAUSE_SECONDS
        while not self.store.check(keys):  # `wait` would print warnings
            self._check()
            if time.monotonic() > deadline:
                raise fault(f"the engine did not answer within {STALLED.total_seconds():.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _attempt(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, which communicates with the workers."""
        try:
            return work()
        except RuntimeError as error:
            self._check()
            raise fault(f"the connection to the engine broke ({one_line(error)})") from error

    def _check(self) -> None:
        """Raise UserError if a worker has failed, and the engine's error if that has ended."""
        if self.store.check(["failed"]):
            raise fault(f"the engine could not load them ({self.store.get('failed').decode()})")
        self.check_engine()


class Receiver:
    """A worker's end of a transfer, as a context; `rank` counts the workers from 1.

    An error that leaves the context is told to the trainer, with the name of the last tensor.
    """

    def __init__(self, offer: Offer, rank: int, device: torch.device):
        self.offer, self.rank, self.device = offer, rank, device
        self.last = "before the first tensor"
        self.store = TCPStore(offer.host, offer.port, is_master=False, timeout=STALLED)
        self.store.set_timeout(EXCHANGE)  # between two buckets the trainer gathers divided layers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.store.set(f"done/{self.rank}", "")
        else:
            self.store.set("failed", f"{self.last}: {one_line(error)}")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors by name as they arrive.

        Each is a view of its bucket, which stays in memory as long as one of its tensors: vLLM
        keeps tensors until their layer is whole.
        """
        self.store.set(f"here/{self.rank}", "")
        with closing(carrier(self.offer, self.store, self.rank, self.device)) as way:
            for number in count():
                header = self._told(f"bucket/{number}")
                if "end" in header:
                    return
                names, shapes = header["names"], header["shapes"]
                dtype = getattr(torch, header["dtype"])
                size = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
                agree = partial(self._agree, number)
                data = way.receive(size, header["announced"], agree)
                for name, tensor in Bucket(names, shapes, dtype, data).tensors():
                    self.last = name
                    yield name, tensor

    def _agree(self, number: int) -> None:
        """Tell the trainer that this worker is ready for a bucket; wait until all are."""
        self.store.set(f"ready/{number}/{self.rank}", "")
        self._told(f"go/{number}")

    def _told(self, key: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.store.get(key))
        if "failed" in told:
            raise RuntimeError(told["failed"])
        return told


def fault(reason: str) -> UserError:
    """Return the error for a transfer that failed."""
    return UserError(
        f"rollout.sync=memory: new weights did not arrive: {reason}; rollout.sync=files passes "
        "them through files instead"
    )


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the beginning of its message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
