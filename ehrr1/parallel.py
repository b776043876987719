"""Several processes as one group: who am I, waiting for each other, and starting them on one node.

A group is started by `run.py` itself (`trainer.devices=N` on one machine), by torchrun, or by srun
with a task a device. All three are read alike here; Lightning and DeepSpeed find the group made.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ehrr1.errors import UserError

Result = TypeVar("Result")

PATIENCE = timedelta(hours=24)
"""How long processes wait for each other: one may tokenise millions of records meanwhile."""

GRACE_SECONDS = 120
"""What processes have to save and end after a signal, before they are killed."""

PARENT = "EHRR1_PARENT"
"""The file descriptor of a pipe from the starting process; it closes when that process is gone."""


def size() -> int:
    """Return the number of processes of this group; 1 outside of a group."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def rank() -> int:
    """Return this process's number in the group, from 0."""
    if size() == 1:
        return 0
    return int(os.environ.get("RANK") or os.environ["SLURM_PROCID"])


def local_rank() -> int:
    """Return this process's number among those on its node."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def leave() -> None:
    """Work on alone: for processes that share work by files and never wait for each other."""
    for name in ("WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)


def join(gpu: bool) -> None:
    """Make the group's connections; nothing for a single process.

    Tensors on the CPU go by gloo, those on GPUs by NCCL.
    """
    import torch
    import torch.distributed as distributed

    if size() == 1 or distributed.is_initialized():
        return
    if "WORLD_SIZE" not in os.environ:
        _describe_slurm_step()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)


def _describe_slurm_step() -> None:
    """Say in torchrun's variables what SLURM says in its own."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    step = os.environ
    number = int(step["SLURM_JOB_ID"]) * 10 + int(step["SLURM_STEP_ID"])
    os.environ |= {
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(step["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(20_000 + number % 20_000),  # the same for all, another for each step
        "RANK": step["SLURM_PROCID"],
        "WORLD_SIZE": step["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": step["SLURM_LOCALID"],
        "GROUP_RANK": step["SLURM_NODEID"],
    }


def barrier() -> None:
    """Wait until every process of the group is here."""
    if size() > 1:
        import torch.distributed as distributed

        distributed.barrier()


def from_first(make: Callable[[], Result]) -> Result:
    """Return what `make` returns in process 0, in every process; the others wait.

    An error of process 0 is raised there and ends the group.
    """
    if size() == 1:
        return make()
    import torch.distributed as distributed

    found: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0)
    return found[0]


def in_turn(make: Callable[[], Result]) -> Result:
    """`make` in process 0, then in the others, which find on disk what it left there."""
    if rank() > 0:
        barrier()
        return make()
    found = make()
    barrier()
    return found


def totals(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes, in float64."""
    if size() == 1:
        return list(values)
    import torch
    import torch.distributed as distributed

    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor)
    return tensor.tolist()


def gather(own: Result) -> list[Result]:
    """Return the values of all processes, in order of rank, in every process."""
    if size() == 1:
        return [own]
    import torch.distributed as distributed

    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, own)
    return found


def free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(command: Sequence[str], processes: int) -> int:
    """Run `command` as a group of `processes` on this machine; the first failing exit code, or 0.

    Process 0 shows what it prints; the others' output is shown if they fail. When one process
    fails the others are ended. SIGTERM, SIGUSR1 and SIGINT are passed on, and processes end with
    this one.
    """
    port = free_port()
    alive, ours = os.pipe()
    with tempfile.TemporaryDirectory() as logs:
        group = []
        for number in range(processes):
            environment = os.environ | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "GROUP_RANK": "0",
                "WORLD_SIZE": str(processes),
                PARENT: str(alive),
            }
            environment.setdefault("OMP_NUM_THREADS", str(max(_cores() // processes, 1)))
            output = None if number == 0 else (Path(logs) / str(number)).open("wb")
            group.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    pass_fds=[alive],
                    stdout=output,
                    stderr=output,
                    # a terminal's Ctrl-C reaches this process alone, which passes it on once
                    start_new_session=True,
                )
            )
        os.close(alive)
        passed_on = {one: signal.signal(one, _to_all(group)) for one in SIGNALS}
        try:
            return _watch(group, Path(logs))
        finally:
            for one, handler in passed_on.items():
                signal.signal(one, handler)
            os.close(ours)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The signals on which a run saves and stops."""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _to_all(group: Sequence["subprocess.Popen[bytes]"]) -> Callable[..., None]:
    def handler(number: int, frame: Any) -> None:
        for process in group:
            process.send_signal(number)

    return handler


def _watch(group: Sequence["subprocess.Popen[bytes]"], logs: Path) -> int:
    """Wait for all; when one fails, end the others and show what it said."""
    deadline = float("inf")
    failed: list[int] = []
    while any(process.poll() is None for process in group):
        time.sleep(0.05)
        failed += [
            number
            for number, process in enumerate(group)
            if process.returncode and number not in failed
        ]
        if failed and deadline == float("inf"):
            # those that were told to stop are saving; others hear of the failure by themselves
            deadline = time.monotonic() + (GRACE_SECONDS if _stopped(group[failed[0]]) else 5)
        if time.monotonic() > deadline:
            for process in group:
                process.kill()
    failed += [n for n, one in enumerate(group) if one.returncode and n not in failed]
    if failed and failed[0] > 0 and not _stopped(group[failed[0]]):
        sys.stderr.write((logs / str(failed[0])).read_text(errors="replace"))
    return group[failed[0]].returncode if failed else 0


def _stopped(process: "subprocess.Popen[bytes]") -> bool:
    return process.returncode in {128 + one for one in SIGNALS}


def has_parent() -> bool:
    """Return whether `start` started this process."""
    return PARENT in os.environ


def end_with_parent() -> None:
    """In a process that `start` started: end when the starting process is gone, however it went."""
    if PARENT in os.environ:
        descriptor = int(os.environ[PARENT])

        def wait() -> None:
            os.read(descriptor, 1)
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def wanted(trainer: Any) -> int:
    """Return the number of processes that `trainer.devices` and `trainer.nodes` ask for.

    `auto` is one a GPU, or one without GPUs.
    """
    if trainer.devices != "auto":
        return int(trainer.devices) * int(trainer.nodes)
    import torch

    gpus = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    return max(gpus, 1) * int(trainer.nodes)


def check_size(wanted: int, devices: Any, nodes: int) -> None:
    """Raise UserError where the group that srun or torchrun started is not the one asked for."""
    if size() != wanted:
        raise UserError(
            f"trainer.devices={devices}, trainer.nodes={nodes}: that is {wanted} "
            f"process{'es' * (wanted > 1)}, but srun or torchrun started {size()}; make them equal"
        )
