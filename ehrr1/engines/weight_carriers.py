"""How the bytes of weights come from the trainer's memory to the workers of an engine.

Each carrier has an end in the trainer (rank 0) and one in each worker. Only `gloo` has ever run:
`nccl` and `ipc` need GPUs.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from json import dumps
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroup, Store

from ehrr1.parallel import EXCHANGE

STALLED = timedelta(minutes=5)
"""Time that workers may take for one bucket, and a connection to be made."""


@dataclass(frozen=True)
class Offer:
    """What workers are told of a transfer.

    `host` and `port` are those of the trainer's store. `transport` says how bytes come: `gloo`, a
    broadcast from CPU to CPU; `nccl`, a broadcast from the trainer's GPU to the engine's; `ipc`, a
    buffer on the GPU that trainer and engine share, where NCCL refuses to work. `workers` is the
    number of all workers, whose ranks begin at 1; those of one engine begin at `first`.
    """

    host: str
    port: int
    transport: Literal["gloo", "nccl", "ipc"]
    workers: int
    first: int = 1

    def to_json(self) -> str:
        """Return the offer as one string, which servers take as an argument."""
        return dumps(asdict(self))


class Carrier(ABC):
    """One end of the transport of buckets, which are tensors of bytes on `device`."""

    device: torch.device

    @abstractmethod
    def announce(self, data: Tensor) -> list[Any] | None:
        """Return what workers must know besides the size, for JSON. Called by the trainer."""

    @abstractmethod
    def send(self, data: Tensor) -> None:
        """Send an announced bucket for which all workers are ready. Called by the trainer."""

    @abstractmethod
    def receive(self, size: int, announced: list[Any] | None, agree: Callable[[], None]) -> Tensor:
        """Return a bucket of `size` bytes in memory of its own. Called by workers.

        `agree` tells the trainer that this worker is ready, and returns when it sends.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the carrier holds."""


class Broadcast(Carrier):
    """A process group of the trainer (rank 0) and the workers, apart from all other groups."""

    def __init__(self, offer: Offer, store: Store, rank: int, device: torch.device):
        size, inside = offer.workers + 1, PrefixStore("group", store)
        self.nccl = offer.transport == "nccl"
        self.group = ProcessGroup(inside, rank, size)
        if self.nccl:
            self.device, kind = device, ProcessGroup.BackendType.NCCL
            backend = nccl(inside, rank, size)
        else:
            self.device, kind = torch.device("cpu"), ProcessGroup.BackendType.GLOO
            own = offer.host if rank == 0 else own_address(offer.host, offer.port)
            backend = gloo(inside, rank, size, own)
        self.group._set_default_backend(kind)
        self.group._register_backend(torch.device(self.device.type), kind, backend)

    def announce(self, data: Tensor) -> None:
        """See `Carrier`."""

    def send(self, data: Tensor) -> None:
        """See `Carrier`."""
        self.group.broadcast(data, 0).wait(STALLED)

    def receive(self, size: int, announced: list[Any] | None, agree: Callable[[], None]) -> Tensor:
        """See `Carrier`."""
        data = torch.empty(size, dtype=torch.uint8, device=self.device)
        agree()
        self.group.broadcast(data, 0).wait(STALLED)
        return data

    def close(self) -> None:
        """See `Carrier`."""
        if self.nccl:
            self.group.abort()  # NCCL holds memory of the GPU


class SharedBuffer(Carrier):
    """The trainer's buffer on a GPU, which the worker on the same GPU maps (CUDA IPC).

    The allocator's expandable segments (`PYTORCH_CUDA_ALLOC_CONF`) cannot be shared everywhere.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.described: dict[int, list[Any]] = {}  # by address: a description serves one mapping
        self.mapped: tuple[list[Any], Tensor] | None = None

    def announce(self, data: Tensor) -> list[Any]:
        """See `Carrier`."""
        place = data.untyped_storage().data_ptr()
        if place not in self.described:
            self.described = {place: describe(data)}
        torch.cuda.synchronize(self.device)  # the bytes are there before the worker looks
        return self.described[place]

    def send(self, data: Tensor) -> None:
        """See `Carrier`. The workers have copied it already."""

    def receive(self, size: int, announced: list[Any] | None, agree: Callable[[], None]) -> Tensor:
        """See `Carrier`."""
        assert announced is not None
        if self.mapped is None or self.mapped[0] != announced:
            self.mapped = announced, map_buffer(announced, self.device)
        data = self.mapped[1][:size].clone()
        torch.cuda.synchronize(self.device)  # before the trainer writes there again
        agree()
        return data

    def close(self) -> None:
        """See `Carrier`."""
        self.mapped = None
        torch.cuda.ipc_collect()


def carrier(offer: Offer, store: Store, rank: int, device: torch.device) -> Carrier:
    """Return an end of the offered transport, on `device` if it runs between GPUs.

    Waits for the other ends.
    """
    if offer.transport == "ipc":
        return SharedBuffer(device)
    return Broadcast(offer, store, rank, device)


def gloo(store: Store, rank: int, size: int, address: str) -> Any:
    """Return gloo's backend of a group, on the network of this machine's `address`."""
    from torch.distributed.distributed_c10d import ProcessGroupGloo

    kind: Any = ProcessGroupGloo  # its stub lacks the options
    options = kind._Options()
    options._timeout = STALLED
    options._devices = [kind.create_device(hostname=address)]
    return kind(store, rank, size, options)


def nccl(store: Store, rank: int, size: int) -> Any:
    """Return NCCL's backend of a group."""
    from torch.distributed.distributed_c10d import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    # `wait` gives up earlier, with an error; NCCL's own watch would end the process
    options._timeout = EXCHANGE
    return ProcessGroupNCCL(store, rank, size, options)


def own_address(host: str, port: int) -> str:
    """Return the address of this machine from which `host` is reached; nothing is sent."""
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as route:
        route.connect(place)
        return str(route.getsockname()[0])


def describe(data: Tensor) -> list[Any]:
    """Return for `map_buffer` what describes the storage of `data` (uint8), for JSON."""
    from torch.multiprocessing.reductions import reduce_tensor

    whole = torch.empty(0, dtype=torch.uint8, device=data.device).set_(data.untyped_storage())
    _, (_, (size,), _, offset, _, _, _, *handle) = reduce_tensor(whole)
    return [size, offset, *(one.hex() if isinstance(one, bytes) else one for one in handle)]


def map_buffer(described: list[Any], device: torch.device) -> Tensor:
    """Return the buffer [bytes] of another process on the same GPU, `device` to this process."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    size, offset, *plain = described
    handle = [bytes.fromhex(one) if isinstance(one, str) else one for one in plain]
    storage, index = torch.storage.TypedStorage, device.index or 0
    shared: Tensor = rebuild_cuda_tensor(
        Tensor, (size,), (1,), offset, storage, torch.uint8, index, *handle
    )
    return shared
