"""Weights through memory, between real processes but without an engine: what is sent arrives, and
who fails or ends is told at once. `test_vllm.py` sends to engines."""

import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing import reductions

from ehrr1.engines import weight_stream
from ehrr1.engines.weight_carriers import describe_on_gpu, map_on_gpu, own_address
from ehrr1.engines.weight_stream import Sender, pack
from ehrr1.errors import UserError
from tests.conftest import ROOT

CPU = torch.device("cpu")


def weights(count: int = 6) -> dict[str, Tensor]:
    """Tensors of several shapes, one larger than a bucket of `LIMIT`; float32 as the trainer's."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(3, 4), (2,), (40, 5), (), (7, 1, 3), (16,)]
    return {f"layer.{n}": torch.randn(s, generator=generator) for n, s in enumerate(shapes[:count])}


LIMIT = 100
"""Bytes of a bucket in these tests."""


def fleeting(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """As the trainer gives them: gone when the next one is asked for."""
    for name, tensor in tensors.items():
        lent = tensor.clone()
        yield name, lent
        lent.fill_(float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buckets_hold_every_tensor(dtype: torch.dtype) -> None:
    given, found = weights(), {}
    sizes = []
    for bucket in pack(fleeting(given), dtype, allocate, LIMIT):
        found |= {name: tensor.clone() for name, tensor in bucket.tensors()}
        sizes.append(bucket.data.nbytes)
        assert bucket.data.nbytes <= LIMIT or len(bucket.names) == 1
    assert list(found) == list(given)
    assert all(torch.equal(found[name], given[name].to(dtype)) for name in given)
    assert sum(sizes) == sum(tensor.numel() for tensor in given.values()) * dtype.itemsize
    assert list(pack([], dtype, allocate, LIMIT)) == []


Worker = subprocess.Popen[str]


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    """Two, as of an engine that is divided among two GPUs."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.weight_worker", str(rank)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 2)
    ]
    try:
        assert [answer(one) for one in started] == ["started", "started"]
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


def answer(worker: Worker) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def allocate(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def nothing() -> None:
    """The engine runs, as far as anyone knows."""


@pytest.fixture
def send(
    workers: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Path]]:
    """Send to both workers; returns their files."""
    monkeypatch.setattr(weight_stream, "BUCKET_BYTES", LIMIT)
    files = [tmp_path / f"{rank}.safetensors" for rank in (1, 2)]

    def run(
        tensors: Any,
        dtype: torch.dtype = torch.float32,
        transport: str = "gloo",
        refused: str | None = None,
        check: Callable[[], None] = nothing,
    ) -> list[Path]:
        with Sender("127.0.0.1", transport, 2, CPU, check) as sender:
            for worker, file, at in zip(workers, files, (None, refused), strict=True):
                request = {"offer": sender.offer.to_json(), "file": str(file), "refused": at}
                assert worker.stdin is not None
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
            sender.send(tensors, dtype)
        return files

    return run


@pytest.mark.parametrize("transport", ["gloo", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_worker_gets_every_tensor(
    dtype: torch.dtype, transport: str, send: Callable[..., list[Path]], workers: list[Worker]
) -> None:
    given = weights()
    files = send(fleeting(given), dtype, transport)
    assert [answer(one) for one in workers] == ["'taken'"] * 2
    for file in files:
        found = load_file(file)
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name].to(dtype)) for name in given)


@pytest.mark.parametrize("transport", ["gloo", "shared"])
def test_a_worker_that_fails_is_told_and_the_others_end(
    transport: str, send: Callable[..., list[Path]], workers: list[Worker]
) -> None:
    with pytest.raises(UserError) as raised:
        send(fleeting(weights()), transport=transport, refused="layer.2")
    said = str(raised.value)
    assert said.startswith("rollout.sync=memory: ") and "rollout.sync=files" in said
    assert "(layer.2: ValueError: layer.2 does not fit)" in said and "\n" not in said
    first, second = map(answer, workers)
    assert "the trainer ended the transfer (UserError)" in first and "does not" in second
    send(fleeting(weights()))
    assert [answer(one) for one in workers] == ["'taken'"] * 2


def test_a_trainer_that_fails_ends_the_workers_too(
    send: Callable[..., list[Path]], workers: list[Worker]
) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from weights(3).items()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        send(broken())
    for worker in workers:
        assert "the trainer ended the transfer (ZeroDivisionError)" in answer(worker)


def test_a_worker_that_is_killed_ends_the_transfer(
    send: Callable[..., list[Path]], workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows that it ended says so at once; otherwise there is a limit."""

    class EndedError(Exception):
        pass

    def check() -> None:
        if workers[1].poll() is not None:
            raise EndedError

    def deadly() -> Iterator[tuple[str, Tensor]]:
        for number, one in enumerate(weights().items()):
            if number == 3:
                workers[1].kill()
            yield one

    begin = time.monotonic()
    with pytest.raises(EndedError):
        send(deadly(), check=check)
    assert time.monotonic() - begin < 30
    assert "the trainer ended the transfer" in answer(workers[0])
    monkeypatch.setattr(weight_stream, "STALLED", timedelta(seconds=1))
    with (
        pytest.raises(UserError, match="did not answer within 1 s"),
        Sender("127.0.0.1", "gloo", 2, CPU, nothing) as sender,
    ):
        sender.send(weights().items(), torch.float32)


def test_the_address_that_an_engine_reaches() -> None:
    assert own_address("127.0.0.1", 80) == own_address("localhost", 80) == "127.0.0.1"


def test_a_shared_buffer_is_described_for_pytorchs_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no GPU here: what PyTorch would return of one, and what it would be given back."""
    rebuild = reductions.rebuild_cuda_tensor
    names = list(inspect.signature(rebuild).parameters)
    storage = torch.storage.TypedStorage
    values = [Tensor, torch.Size([64]), (1,), 0, storage, torch.uint8, 3, b"\x00h", 64, 128, False]
    values += [b"counter", 2, b"event", True]
    data = torch.zeros(64, dtype=torch.uint8)
    monkeypatch.setattr(reductions, "reduce_tensor", lambda given: (rebuild, tuple(values)))
    described = json.loads(json.dumps(describe_on_gpu(data)))
    given: dict[str, Any] = {}

    def rebuilt(*args: Any) -> Tensor:
        given.update(zip(names, args, strict=True))
        return data

    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", rebuilt)
    assert map_on_gpu(described, torch.device("cuda", 0)) is data
    expected = dict(zip(names, values, strict=True))
    assert given == expected | {"storage_device": 0, "tensor_size": (64,)}
