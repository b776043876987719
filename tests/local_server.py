"""A server of a test's own on this machine, for as long as the test needs it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no error."""


class LocalServer:
    """Serves in the background between `with` and its end. A subclass names the class that handles
    requests, whose `owner` is then the server; `lock` guards what requests count."""

    handler: ClassVar[type[BaseHTTPRequestHandler]]
    path: ClassVar[str] = ""
    host: str = "127.0.0.1"

    def __enter__(self) -> Self:
        self.lock = threading.Lock()
        self.http = Quiet((self.host, 0), type("Handler", (self.handler,), {"owner": self}))
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.http.server_port}{self.path}"
