"""One request to a server that generates."""

import http.client
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

KEEPALIVE = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""A node that is gone without a word is noticed within a minute."""

FAILURES = (OSError, http.client.HTTPException)
"""What a request without an answer raises."""


class Reply(NamedTuple):
    """An answer: its HTTP status and what it holds."""

    status: int
    content: bytes

    @property
    def ok(self) -> bool:
        return self.status == http.HTTPStatus.OK

    @property
    def said(self) -> str:
        """The beginning of an answer that is an error, on one line."""
        return " ".join(self.content.decode(errors="replace").split())[:500]


def call(
    verb: str, url: str, body: dict[str, Any] | None, timeout: float, key: str | None = None
) -> Reply:
    """Send `body` as JSON and wait for the whole answer, at most `timeout` seconds without a word.

    Raises one of `FAILURES` where there is none.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in KEEPALIVE.items():
            connection.sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
        text = json.dumps(body) if body is not None else None
        connection.request(verb, parts.path, text, headers)
        answer = connection.getresponse()
        return Reply(answer.status, answer.read())
    finally:
        connection.close()
