"""The connection to one vLLM server that `python -m ehrr1.engines.vllm_server` started."""

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import torch
from httpx2 import HTTPTransport

from ehrr1.config.writers import VllmServerConfig
from ehrr1.engines.endpoint import NO_KEY
from ehrr1.engines.server import START_SECONDS, describe, message_of
from ehrr1.engines.weight_carriers import own_address
from ehrr1.errors import UserError

MODEL = "ehrr1"
"""The name under which a server offers the model."""

COMMAND = "python -m ehrr1.engines.vllm_server FOLDER"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""TCP keep-alive in seconds: a dead peer is detected within about 60 s."""


class Connection:
    """The server at `url`, one of `settings.url`.

    A response may take `settings.timeout_seconds`; `max_length` bounds prompt and completion
    together, in tokens. `workers` is the number of its worker processes, `on_gpu` whether they
    have GPUs, `address` the address of this machine that they reach.

    Raises UserError, here and later, if the server does not answer as one started by `COMMAND`.
    """

    def __init__(self, url: str, settings: VllmServerConfig, max_length: int):
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise UserError(f"rollout.url={url}: give it as http://HOST:PORT")
        self.url = url.rstrip("/")
        self.client = openai.OpenAI(
            api_key=NO_KEY,
            base_url=f"{self.url}/v1",
            timeout=settings.timeout_seconds,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                transport=HTTPTransport(socket_options=KEEP_ALIVE), follow_redirects=False
            ),
        )
        [served] = self.call("GET", "/v1/models", seconds=START_SECONDS)["data"]
        if served["id"] != MODEL:
            raise self.wrong(f"it serves {served['id']}, and was not started by ehrr1")
        if served["max_model_len"] < max_length:
            raise self.wrong(
                f"it takes {served['max_model_len']} tokens, prompts and completions need "
                f"{max_length}; start it with --max-model-len {max_length}"
            )
        [described, *_] = self.ask_workers("prepare")
        self.dtype = DTYPES[described["dtype"]]
        self.workers, self.on_gpu = int(described["workers"]), described["device"] == "cuda"
        self.address = own_address(parts.hostname, parts.port)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response to a request for completions."""
        found: dict[str, Any] = self.call("POST", "/v1/completions", body)
        return found

    def take_weights(self, folder: Path) -> None:
        """Have the server load the safetensors in `folder`."""
        self.ask_workers("take_weights", str(folder))

    def forget_prompts(self) -> None:
        """Have the server forget keys and values, which are those of older weights."""
        if not self.call("POST", "/reset_prefix_cache")["success"]:
            raise self.wrong("it is still generating for another client")

    def ask_workers(self, method: str, *arguments: str) -> list[Any]:
        """Return what each worker's `method` of `vllm_worker.Worker` returns."""
        body = {"method": method, "args": list(arguments)}
        found: list[Any] = self.call("POST", "/collective_rpc", body)["results"]
        return found

    def call(
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
            raise self.wrong(reason) from error
        except openai.APIConnectionError as error:
            raise self.wrong(f"no answer ({describe(error)})") from error

    def wrong(self, reason: str) -> UserError:
        """Return the error for a server that cannot be used."""
        return UserError(
            f"rollout.url={self.url}: {reason}. Start the server again (`{COMMAND}`), then repeat "
            "this command: the run resumes"
        )

    def close(self) -> None:
        """Close the connection; the server keeps running."""
        self.client.close()
