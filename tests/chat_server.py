"""A server on this machine that speaks OpenAI's chat completions, with the faults of
`tests.messages_server`.

    with ChatServer(Faults(rate_limited=0.1), seed=0) as server:
        AsyncOpenAI(base_url=server.url, api_key="test")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.messages_server import Body, MessagesHandler, MessagesServer, text_of


@dataclass
class ChatServer(MessagesServer):
    """Knows one model and one key. `knows_not`: settings of a request that it refuses. A user's
    text that holds `flagged` is refused as Azure's filter does; `broke`: the account is empty.
    `caches`: whether it tells what was read from its cache, as vLLM does not. `moved_to`: the
    address to which it redirects."""

    model: str = "some-model"
    key: str | None = "test"
    knows_not: Sequence[str] = ()
    flagged: str | None = None
    broke: bool = False
    caches: bool = True
    moved_to: str | None = None


class _Handler(MessagesHandler):
    owner: ChatServer

    def _message(self, body: Body) -> None:
        owner = self.owner
        unknown = [name for name in owner.knows_not if name in body]
        if owner.moved_to is not None:
            self._error(307, {"location": owner.moved_to + self.path.removeprefix("/v1")})
        elif self.path != "/v1/chat/completions":
            self._error(404)
        elif owner.key is not None and self.headers["authorization"] != f"Bearer {owner.key}":
            self._refuse(401, "invalid_api_key", "Incorrect API key provided:\nsee the account")
        elif body["model"] != owner.model:
            self._refuse(404, "model_not_found", f"The model `{body['model']}` does not exist")
        elif unknown:
            self._refuse(400, "unsupported_parameter", f"Unsupported parameter: {unknown[0]}")
        elif owner.broke:
            self._refuse(429, "insufficient_quota", "You exceeded your current quota")
        elif owner.flagged is not None and owner.flagged in text_of(body):
            self._refuse(400, "content_filter", "The response was filtered")
        else:
            super()._message(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._error(status, error={"message": message, "type": None, "param": None, "code": code})

    def _answered(self, body: Body, fault: str | None) -> Body:
        text = self.owner.answer(body)
        if fault == "wrong":
            return {"id": "chatcmpl-1", "object": "chat.completion", "choices": None}
        empty = fault == "empty"
        message: dict[str, Any] = {"role": "assistant", "content": None if empty else text}
        message["refusal"] = "I cannot help with that." if empty else None
        reason = "length" if fault == "truncated" else "stop"
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": self._usage(body, text),
        }

    def _usage(self, body: Body, text: str) -> Body:
        """A token a character; what was asked before is read from the cache."""
        whole = "".join(message["content"] for message in body["messages"])
        with self.owner.lock:
            seen = self.owner.asked[f"cache {whole}"] > 0
            self.owner.asked[f"cache {whole}"] += 1
        details = {"cached_tokens": len(whole) * seen, "audio_tokens": 0}
        return {
            "prompt_tokens": len(whole),
            "completion_tokens": len(text),
            "total_tokens": len(whole) + len(text),
            "prompt_tokens_details": details if self.owner.caches else None,
        }


ChatServer.handler = _Handler
ChatServer.path = "/v1"
