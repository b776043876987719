"""Coordinate several processes as one group: ranks, barriers, and starting them on one node.

A group is started by `run.py` itself (`trainer.devices=N` on one machine), by torchrun, or by srun
with one task per device. All three are handled here; Lightning and DeepSpeed use the group that
exists.
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

from ehrr1.cores import cores
from ehrr1.entry import leave_terminal
from ehrr1.errors import UserError

Result = TypeVar("Result")

PATIENCE = timedelta(hours=24)
"""Time that processes wait for one that works alone, which may tokenise millions of records."""

EXCHANGE = timedelta(hours=2)
"""Timeout of exchanges of weights and gradients, in all groups.

All processes take part at about the same time, but for slow disks: checkpoints of ZeRO and the
weights for an engine are written between exchanges. PyTorch's default is 30 minutes. NCCL does not
notice that another process has died: the run ends after this time at the latest.
"""

_waiting: Any = None
"""The group by which processes wait for each other, of gloo on GPUs too.

gloo notices a process that has died, and leaves the GPU alone.
"""

GRACE_SECONDS = 120
"""Seconds that processes have to save and exit after a signal, before they are killed."""

PARENT = "EHRR1_PARENT"
"""Environment variable with the file descriptor of a pipe from the starting process.

The pipe is closed when that process ends.
"""


def size() -> int:
    """Return the number of processes in this group; 1 outside a group."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def rank() -> int:
    """Return this process's rank in the group, from 0."""
    if size() == 1:
        return 0
    return int(os.environ.get("RANK") or os.environ["SLURM_PROCID"])


def local_rank() -> int:
    """Return this process's rank on its node, from 0."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def leave() -> None:
    """Leave the group, for processes that share work through files and need no synchronisation.

    `LOCAL_RANK` stays: it says which of its node's devices is this process's.
    """
    os.environ["LOCAL_RANK"] = str(local_rank())
    for name in ("WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)


def join(gpu: bool) -> None:
    """Initialise the group's communication; does nothing for a single process.

    CPU tensors use gloo, GPU tensors NCCL.
    """
    global _waiting
    import torch
    import torch.distributed as distributed

    if size() == 1 or distributed.is_initialized():
        return
    if "WORLD_SIZE" not in os.environ:
        _describe_slurm_step()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=EXCHANGE)
    # DeepSpeed makes groups of its own, without a timeout
    distributed.distributed_c10d.default_pg_timeout = EXCHANGE
    _waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)


def part() -> None:
    """End the group's communication, if there is any.

    gloo's threads abort a process that exits while they run: now and then, with exit code 250.
    """
    global _waiting
    import torch.distributed as distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
        _waiting = None


def _describe_slurm_step() -> None:
    """Set torchrun's environment variables from those of SLURM."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    step = os.environ
    number = int(step["SLURM_JOB_ID"]) * 10 + int(step["SLURM_STEP_ID"])
    os.environ |= {
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(step["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(20_000 + number % 20_000),  # the same in all tasks of a step
        "RANK": step["SLURM_PROCID"],
        "WORLD_SIZE": step["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": step["SLURM_LOCALID"],
        "GROUP_RANK": step["SLURM_NODEID"],
    }


def barrier() -> None:
    """Wait until every process of the group has reached this call."""
    if size() > 1:
        import torch.distributed as distributed

        distributed.barrier(_waiting)


def from_first(make: Callable[[], Result]) -> Result:
    """Run `make` on rank 0 and return its result on every rank; the other ranks wait.

    An error on rank 0 is raised there and ends the group.
    """
    if size() == 1:
        return make()
    import torch.distributed as distributed

    found: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0, group=_waiting)
    return found[0]


def in_turn(make: Callable[[], Result]) -> Result:
    """Run `make` on rank 0 first, then on the other ranks, which reuse the files of rank 0.

    Returns the result of this rank.
    """
    if rank() > 0:
        barrier()
        return make()
    found = make()
    barrier()
    return found


def totals(values: Sequence[float]) -> list[float]:
    """Return each value summed over the processes, in float64."""
    if size() == 1:
        return list(values)
    import torch
    import torch.distributed as distributed

    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor, group=_waiting)
    return tensor.tolist()


def gather(own: Result) -> list[Result]:
    """Return the values of all processes in order of rank, in every process."""
    if size() == 1:
        return [own]
    import torch.distributed as distributed

    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, own, group=_waiting)
    return found


def free_port() -> int:
    """Return a port of this machine on which no process listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(command: Sequence[str], processes: int) -> int:
    """Run `command` as a group of `processes` on this machine and return its exit code.

    This is the first failing exit code, or 0. The output of process 0 is shown; that of another
    process only if it fails first. When one process fails, the others are ended. SIGTERM,
    SIGUSR1, SIGINT and SIGHUP are forwarded, and the processes end when this one does.
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
            environment.setdefault("OMP_NUM_THREADS", str(max(cores() // processes, 1)))
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
        passed_on = on_signals(_to_all(group))
        try:
            return _watch(group, Path(logs))
        finally:
            for one, handler in passed_on.items():
                signal.signal(one, handler)
            os.close(ours)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""Signals to save and stop."""


def on_signals(handler: Callable[[int, Any], None]) -> dict[signal.Signals, Any]:
    """Have `handler` answer `SIGNALS`; return the handlers that they had.

    A signal that is ignored, as `nohup` and `&` leave it, stays so, and is not among them.
    """
    heard = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    return {one: signal.signal(one, handler) for one in heard}


def _to_all(group: Sequence["subprocess.Popen[bytes]"]) -> Callable[..., None]:
    def handler(number: int, frame: Any) -> None:
        leave_terminal(number)
        for process in group:
            process.send_signal(number)

    return handler


def _watch(group: Sequence["subprocess.Popen[bytes]"], logs: Path) -> int:
    """Wait for all processes; when one fails, end the others and show its output."""
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
            # after a signal, the others are saving; otherwise they notice the failure themselves
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
    """End this process, if `start` started it, as soon as the starting process has ended."""
    if PARENT in os.environ:
        descriptor = int(os.environ[PARENT])

        def wait() -> None:
            os.read(descriptor, 1)
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def wanted(trainer: Any) -> int:
    """Return the number of processes that `trainer.devices` and `trainer.nodes` request.

    devices=auto is one process per GPU.
    """
    if trainer.devices != "auto":
        return int(trainer.devices) * int(trainer.nodes)
    import torch

    gpus = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    return max(gpus, 1) * int(trainer.nodes)


def check_size(wanted: int, devices: Any, nodes: int) -> None:
    """Raise UserError if srun or torchrun started another number of processes than configured."""
    if size() != wanted:
        raise UserError(
            f"trainer.devices={devices}, trainer.nodes={nodes}: that is {wanted} "
            f"process{'es' * (wanted > 1)}, but srun or torchrun started {size()}; make them equal"
        )
