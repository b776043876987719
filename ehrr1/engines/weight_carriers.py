"""Carriers of weights from the trainer's memory to the workers of an engine.

Each carrier has an end in the trainer (rank 0) and one in each worker. What needs GPUs, NCCL and
CUDA IPC, has never run.
"""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from json import dumps
from mmap import mmap
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroup, Store

from ehrr1.parallel import EXCHANGE

STALLED = timedelta(minutes=5)
"""Time that workers may take for one bucket, and a connection to be made."""


Transport = Literal["gloo", "nccl", "shared"]


@dataclass(frozen=True)
class Offer:
    """The description of a transfer that workers receive.

    `host` and `port` are those of the trainer's store. `transport` says how bytes come: `gloo`, a
    broadcast from CPU to CPU; `nccl`, a broadcast from the trainer's GPU to others; `shared`, the
    trainer's buffer, for workers on its GPU (where NCCL refuses to work) or, without one, on its
    machine. `workers` is the number of all workers, whose ranks begin at 1; those of one engine
    begin at `first`.
    """

    host: str
    port: int
    transport: Transport
    workers: int
    first: int = 1

    def to_json(self) -> str:
        """Return the offer as one string, which servers take as an argument."""
        return dumps(asdict(self))


class Carrier(ABC):
    """One end of the transport of buckets, which are tensors of bytes on `device`."""

    device: torch.device

    @abstractmethod
    def allocate(self, size: int) -> Tensor:
        """Return the trainer's buffer [bytes] for buckets, in place of an earlier one."""

    @abstractmethod
    def announce(self, data: Tensor) -> list[Any] | None:
        """Return what workers must know besides the size, for JSON. Called by the trainer."""

    @abstractmethod
    def send(self, data: Tensor) -> None:
        """Pass on an announced bucket for which all workers are ready. Called by the trainer."""

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

    def allocate(self, size: int) -> Tensor:
        """See `Carrier`."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def announce(self, data: Tensor) -> None:
        """See `Carrier`."""

    def send(self, data: Tensor) -> None:
        """See `Carrier`."""
        self._broadcast(data)

    def receive(self, size: int, announced: list[Any] | None, agree: Callable[[], None]) -> Tensor:
        """See `Carrier`."""
        data = self.allocate(size)
        agree()
        self._broadcast(data)
        return data

    def _broadcast(self, data: Tensor) -> None:
        self.group.broadcast(data, 0).wait(STALLED)
        if self.nccl:
            torch.cuda.synchronize(self.device)  # before the group ends

    def close(self) -> None:
        """See `Carrier`."""
        if self.nccl:
            self.group.abort()  # NCCL holds memory of the GPU


class SharedBuffer(Carrier):
    """The trainer's buffer, which workers on the same machine or GPU map and copy.

    On a CPU it is a file in memory, which goes when nobody has it open; on a GPU CUDA IPC, for
    which the allocator's expandable segments (`PYTORCH_CUDA_ALLOC_CONF`) do not serve everywhere.
    """

    def __init__(self, device: torch.device):
        self.device, self.gpu = device, device.type == "cuda"
        self.file: int | None = None
        self.described: list[Any] = []
        self.mapped: Tensor | None = None

    def allocate(self, size: int) -> Tensor:
        """See `Carrier`."""
        self.close()
        if self.gpu:
            data = torch.empty(size, dtype=torch.uint8, device=self.device)
            self.described = describe_on_gpu(data)
        else:
            self.file = os.memfd_create("weights")
            os.ftruncate(self.file, size)
            self.described = [os.getpid(), self.file, size]
            data = map_on_cpu(self.described)
        return data

    def announce(self, data: Tensor) -> list[Any]:
        """See `Carrier`."""
        self._finish()  # the bytes are there before a worker looks
        return self.described

    def send(self, data: Tensor) -> None:
        """See `Carrier`. The workers have copied it already."""

    def receive(self, size: int, announced: list[Any] | None, agree: Callable[[], None]) -> Tensor:
        """See `Carrier`."""
        assert announced is not None
        if self.mapped is None or self.described != announced:
            self.described = announced
            self.mapped = map_on_gpu(announced, self.device) if self.gpu else map_on_cpu(announced)
        data = self.mapped[:size].clone()
        self._finish()  # before the trainer writes there again
        agree()
        return data

    def close(self) -> None:
        """See `Carrier`."""
        self.mapped = None
        if self.file is not None:
            os.close(self.file)
            self.file = None
        if self.gpu:
            torch.cuda.ipc_collect()

    def _finish(self) -> None:
        if self.gpu:
            torch.cuda.synchronize(self.device)


def carrier(offer: Offer, store: Store, rank: int, device: torch.device) -> Carrier:
    """Return an end of the offered transport, on `device` but for gloo, which runs on CPUs.

    Waits for the other ends of a broadcast.
    """
    if offer.transport == "shared":
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


def map_on_cpu(described: list[Any]) -> Tensor:
    """Return a process's file in memory [bytes]: its process id, descriptor and size."""
    process, file, size = described
    with open(f"/proc/{process}/fd/{file}", "r+b") as opened:
        return torch.frombuffer(mmap(opened.fileno(), size), dtype=torch.uint8)


def describe_on_gpu(data: Tensor) -> list[Any]:
    """Return for `map_on_gpu` what describes a buffer (uint8), for JSON."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, (_, (size,), _, offset, _, _, _, *handle) = reduce_tensor(data)
    return [size, offset, *(one.hex() if isinstance(one, bytes) else one for one in handle)]


def map_on_gpu(described: list[Any], device: torch.device) -> Tensor:
    """Return the buffer [bytes] of another process on the same GPU, `device` to this process.

    A description may be mapped once: PyTorch keeps the buffer until the mapping is gone.
    """
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    size, offset, *plain = described
    handle = [bytes.fromhex(one) if isinstance(one, str) else one for one in plain]
    storage, index = torch.storage.TypedStorage, device.index or 0
    shared: Tensor = rebuild_cuda_tensor(
        Tensor, (size,), (1,), offset, storage, torch.uint8, index, *handle
    )
    return shared
