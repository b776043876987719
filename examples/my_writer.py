"""A chain writer of your own: a server with what is needed of OpenAI's chat completions.

It listens on the port that it is called with: chains=openai chains.base_url=http://127.0.0.1:PORT/v1
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chain(prompt: str) -> str:
    """Write a chain from a prompt's evidence; here your program, rules or model do better.

    Evidence is a line `item | event | time`, then a line `-> result (numbers)` for each result.
    """
    cited: dict[str, list[str]] = {}
    before = ""
    for line in prompt.splitlines():
        if line.startswith("-> "):
            cited.setdefault(before, []).append(line[3:].rsplit(" (", 1)[0])
        else:
            before = line
    reasons = [f"{line.split(' | ')[0]}: {', '.join(found)}" for line, found in cited.items()]
    results = dict.fromkeys(item for found in cited.values() for item in found)
    lines = ["## Extraction", *cited, "## Reasoning", *reasons, "## Final Results", *results]
    return "\n".join(lines)


class Writer(BaseHTTPRequestHandler):  # noqa: D101
    def do_POST(self) -> None:  # noqa: D102
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = chain(body["messages"][-1]["content"])
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": len(text.split())}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice], "usage": usage}).encode())


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Writer).serve_forever()
