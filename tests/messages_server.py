"""A server on this machine that speaks Anthropic's Messages and Message Batches, with faults.

Faults come from a seed and the request's text and attempt, not from the order of arrival, so that
a test finds the same ones however its threads run. `served` counts, for each request, the answers
that were written to the wire whole: what a client may have got and would have to pay for.

    with MessagesServer(Faults(overloaded=0.1), seed=0) as server:
        AsyncAnthropic(base_url=server.url, api_key="test")
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, fields
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.local_server import LocalServer

Body = dict[str, Any]


@dataclass(frozen=True)
class Faults:
    """The share of requests that end in each way; the rest is answered."""

    rate_limited: float = 0  # 429 with retry-after
    overloaded: float = 0  # 529
    broken: float = 0  # 500
    slow: float = 0  # answered after `slow_seconds`: the client has given up
    cut: float = 0  # the connection ends within the answer
    malformed: float = 0  # no JSON
    wrong: float = 0  # JSON, but no message
    truncated: float = 0  # stop_reason max_tokens
    empty: float = 0  # refused: no content
    expired: float = 0  # batch entries only, as the next two
    errored: float = 0
    missing: float = 0


BATCH_ONLY = frozenset({"expired", "errored", "missing"})
NAMES = tuple(one.name for one in fields(Faults))


@dataclass
class MessagesServer(LocalServer):
    """`answer` writes the text of a request's body; `status` refuses everything with that code."""

    faults: Faults = Faults()
    seed: int = 0
    answer: Callable[[Body], str] = lambda body: f"answer to {text_of(body)}"
    slow_seconds: float = 1.0
    status: int | None = None
    batch_seconds: float = 0.0
    """How long a batch is worked on."""
    served: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    batches: dict[str, Body] = field(default_factory=dict)
    created: dict[str, float] = field(default_factory=dict)
    lose_creations: int = 0
    """So many times a batch is created, but its creator is not told."""
    garble_results: int = 0
    """So many times the results of a batch are no JSON."""
    hang_at: int | None = None
    """After creating so many batches the server says nothing for `slow_seconds`, once."""
    at_once: int = 0
    most_at_once: int = 0

    def fault(self, key: str, attempt: int, batch: bool = False) -> str | None:
        """Return the fault of the n-th request."""
        level = random.Random(f"{self.seed}/{key}/{attempt}").random()
        for name, share in zip(NAMES, astuple(self.faults), strict=True):
            # connections do not break within a batch's entry
            if (name in BATCH_ONLY) == batch or (batch and name in ("wrong", "truncated", "empty")):
                if level < share:
                    return name
                level -= share
        return None


class MessagesHandler(BaseHTTPRequestHandler):
    owner: MessagesServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.owner.headers.append({k.lower(): v for k, v in self.headers.items()})
        if self.owner.status:
            self._error(self.owner.status)
        elif self.path == "/v1/messages/batches":
            self._create(body)
        else:
            self._message(body)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        parts = path.split("/")
        if self.owner.status:
            self._error(self.owner.status)
            return
        fault = self._fault(path, count=f"GET {path}")
        if fault is not None and self._broken(fault):
            return
        if path == "/v1/messages/batches":
            self._list(query)
        elif parts[4] not in self.owner.batches:
            self._error(404)
        elif parts[-1] == "results":
            self._results(parts[4])
        else:
            self._reply(self._batch(parts[4]))

    def _message(self, body: Body) -> None:
        owner = self.owner
        with owner.lock:
            owner.bodies.append(body)
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
        try:
            self._message_or_fault(body)
        finally:
            with owner.lock:
                owner.at_once -= 1

    def _message_or_fault(self, body: Body) -> None:
        key = text_of(body)
        fault = self._fault(key, count=key)
        if fault is not None and self._broken(fault):
            return
        if self._reply(self._answered(body, fault)):
            with self.owner.lock:
                self.owner.served[key] += fault != "wrong"

    def _fault(self, key: str, count: str, batch: bool = False) -> str | None:
        with self.owner.lock:
            attempt = self.owner.asked[count]
            self.owner.asked[count] += 1
            fault = self.owner.fault(key, attempt, batch)
            if fault is not None:
                self.owner.happened[fault] += 1
        return fault

    def _broken(self, fault: str) -> bool:
        """Answer with an error; False where the answer itself is what is wrong."""
        if fault == "rate_limited":
            self._error(429, {"retry-after": "0.05"})
        elif fault == "overloaded":
            self._error(529, {"retry-after": "0.05"})
        elif fault == "broken":
            self._error(500, {"retry-after": "0.05"})
        elif fault == "slow":
            time.sleep(self.owner.slow_seconds)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "msg_')
            self.wfile.flush()
            self.close_connection = True
        elif fault == "malformed":
            self._send(b'{"id": "msg_1", "type": "mess', 200)
        else:
            return False
        return True

    def _answered(self, body: Body, fault: str | None) -> Body:
        text = self.owner.answer(body)
        if fault == "wrong":
            return {"id": "msg_1", "type": "message", "content": None}
        content = [] if fault == "empty" else [{"type": "text", "text": text}]
        reason = {"truncated": "max_tokens", "empty": "refusal"}.get(str(fault), "end_turn")
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self._usage(body, text),
        }

    def _usage(self, body: Body, text: str) -> Body:
        """A token a character; a cached record is written by its first request, then read."""
        blocks = body["messages"][0]["content"]
        marks = [number for number, block in enumerate(blocks) if "cache_control" in block]
        cached = "".join(block["text"] for block in blocks[: max(marks, default=-1) + 1])
        plain = sum(len(block["text"]) for block in blocks) - len(cached)
        with self.owner.lock:
            seen = cached and self.owner.asked[f"cache {cached}"] > 0
            self.owner.asked[f"cache {cached}"] += 1
        return {
            "input_tokens": plain,
            "output_tokens": len(text),
            "cache_creation_input_tokens": 0 if seen else len(cached),
            "cache_read_input_tokens": len(cached) if seen else 0,
        }

    def _create(self, body: Body) -> None:
        owner = self.owner
        fault = self._fault("create", count="create")
        if fault is not None and fault != "slow" and self._broken(fault):
            return
        with owner.lock:
            batch_id = f"msgbatch_{len(owner.batches)}"
            owner.batches[batch_id] = body
            owner.created[batch_id] = time.time()
            lost = owner.lose_creations > 0
            owner.lose_creations -= lost
            hang = len(owner.batches) == owner.hang_at
        if lost:
            self._broken("cut")
        elif fault == "slow" or hang:
            self._broken("slow")
        else:
            self._reply(self._batch(batch_id))

    def _batch(self, batch_id: str) -> Body:
        owner, size = self.owner, len(self.owner.batches[batch_id]["requests"])
        ended = time.time() - owner.created[batch_id] >= owner.batch_seconds
        kinds = ("processing", "succeeded", "errored", "canceled", "expired")
        counts = dict.fromkeys(kinds, 0) | {"succeeded" if ended else "processing": size}
        at = datetime.fromtimestamp(owner.created[batch_id], UTC).isoformat()
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": at,
            "expires_at": at,
            "results_url": f"{owner.url}/v1/messages/batches/{batch_id}/results" if ended else None,
        }

    def _list(self, query: str) -> None:
        ids = sorted(self.owner.batches, key=lambda one: -self.owner.created[one])
        after = dict(pair.split("=") for pair in query.split("&") if pair).get("after_id")
        if after:
            ids = ids[ids.index(after) + 1 :]
        page = [self._batch(one) for one in ids[:2]]
        self._reply({"data": page, "has_more": len(ids) > 2, "last_id": None, "first_id": None})

    def _results(self, batch_id: str) -> None:
        if self.owner.garble_results > 0:
            self.owner.garble_results -= 1
            self._broken("malformed")
            return
        lines = []
        for entry in reversed(self.owner.batches[batch_id]["requests"]):
            body = entry["params"]
            key = text_of(body)
            attempt = entry["custom_id"].split("-")[0]  # the same however often it is fetched
            fault = self.owner.fault(f"{key}/{attempt}", 0, batch=True)
            with self.owner.lock:
                self.owner.happened[str(fault)] += fault is not None
            if fault in ("expired",):
                result: Body = {"type": "expired"}
            elif fault == "errored":
                inner = {"type": "api_error", "message": "x"}
                result = {"type": "errored", "error": {"type": "error", "error": inner}}
            elif fault == "missing":
                continue
            else:
                result = {"type": "succeeded", "message": self._answered(body, fault)}
                with self.owner.lock:
                    self.owner.served[key] += fault != "wrong"
            lines.append(json.dumps({"custom_id": entry["custom_id"], "result": result}))
        self._send(("\n".join(lines) + "\n").encode(), 200, kind="application/x-jsonl")

    def _error(
        self, status: int, headers: dict[str, str] | None = None, error: Body | None = None
    ) -> None:
        told = error or {"type": "some_error", "message": f"told so by {status}"}
        data = json.dumps({"type": "error", "error": told}).encode()
        self._send(data, status, headers)

    def _reply(self, value: Body) -> bool:
        return self._send(json.dumps(value).encode(), 200)

    def _send(
        self,
        data: bytes,
        status: int,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> bool:
        """Return whether the response was sent."""
        try:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            return False
        return True


def text_of(body: Body) -> str:
    """All that a request's user says: tells one request from another."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(block["text"] for block in content)


MessagesServer.handler = MessagesHandler
