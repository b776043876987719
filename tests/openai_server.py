"""A server on this machine that speaks OpenAI's completions as vLLM does, with faults.

    with CompletionsServer(faults=["overloaded", "cut"]) as server:
        OpenAIServer(settings(server), tokenizer)

Every prompt meets the faults in turn, once each, and is then answered. `asked` counts the requests
of each prompt.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_server import LocalServer

Body = dict[str, Any]

STATUSES = {"overloaded": 429, "broken": 500, "restarting": 503}


def logprob(prompt: Sequence[int], token: int) -> float:
    """Return the log-probability of a token behind a prompt to the server's model."""
    return -0.5 - (sum(prompt) * 7 + token * 13) % 50 / 10


@dataclass
class CompletionsServer(LocalServer):
    """`tells`: how it names tokens: `ids` (those that are asked for), `texts` (by `text_of`, the
    likeliest only) or `nothing`. Prompts of more than `longest` tokens are refused; `status`
    refuses everything; after `answers` answers it is gone."""

    faults: Sequence[str] = ()
    tells: str = "ids"
    text_of: Callable[[int], str] = str
    likeliest: Sequence[int] = ()
    writes: str = "Heparin"
    tokens: Sequence[int] = (5, 6, 7)
    longest: int = 1000
    status: int | None = None
    answers: int | None = None
    slow_seconds: float = 1.0
    models: Sequence[str] = ("some/model",)
    asked: Counter[tuple[int, ...]] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0


class _Handler(BaseHTTPRequestHandler):
    owner: CompletionsServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.owner.keys.add(self.headers["authorization"])
        models = [{"id": name, "root": name, "max_model_len": 1000} for name in self.owner.models]
        self._send(self.owner.status or 200, {"data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        owner, key = self.owner, tuple(body["prompt"])
        with owner.lock:
            owner.bodies.append(body)
            owner.keys.add(self.headers["authorization"])
            attempt = owner.asked[key]
            owner.asked[key] += 1
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
            answered = owner.asked.total()
        try:
            if owner.answers is not None and answered > owner.answers:
                self.connection.close()
            elif owner.status or len(key) > owner.longest:
                self._send(owner.status or 400, {"message": f"told so: {len(key)} tokens"})
            elif attempt < len(owner.faults):
                self._fault(owner.faults[attempt])
            else:
                self._send(200, {"choices": [self._choice(body) for _ in range(body.get("n", 1))]})
        finally:
            with owner.lock:
                owner.at_once -= 1

    def _fault(self, fault: str) -> None:
        if fault in STATUSES:
            self._send(STATUSES[fault], {"message": fault})
        elif fault == "slow":
            time.sleep(self.owner.slow_seconds)
        elif fault == "malformed":
            self._write(200, b'{"choices": [{')
        elif fault == "wrong":
            self._send(200, {"choices": None})
        else:  # cut
            self._write(200, b'{"cho', more=1000)

    def _choice(self, body: Body) -> Body:
        owner = self.owner
        choice: Body = {"text": owner.writes, "finish_reason": "stop"}
        if owner.tells == "ids":
            wanted = body.get("logprob_token_ids", [])
            top = {f"token_id:{one}": logprob(body["prompt"], one) for one in wanted}
            chances = [logprob(body["prompt"], one) for one in owner.tokens]
            choice["logprobs"] = {"top_logprobs": [top], "token_logprobs": chances}
            choice["token_ids"] = list(owner.tokens)
        elif owner.tells == "texts":
            told = {owner.text_of(one): logprob(body["prompt"], one) for one in owner.likeliest}
            choice["logprobs"] = {"top_logprobs": [told]}
        return choice

    def _send(self, status: int, value: Any) -> None:
        self._write(status, json.dumps(value).encode())

    def _write(self, status: int, data: bytes, more: int = 0) -> None:
        """`more`: how many bytes are promised and never come."""
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(data) + more))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            pass  # the client has given up


CompletionsServer.handler = _Handler
CompletionsServer.path = "/v1"
