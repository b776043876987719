"""Writers that are killed: `python -m tests.killed_writers LEDGER SETTINGS COUNT`.

Forks a process that writes COUNT samples' drafts with the settings in a YAML file, and prints its
number. When that one is killed, waits for a line on stdin and forks the next; ends with the first
that was not killed. Forked, as importing the SDK takes seconds.
"""

import os
import sys
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import anthropic  # noqa: F401 (so that each fork has it)
import yaml

from ehrr1.config.writers import AnthropicChains
from ehrr1.graph.chains.batches import write_batches
from ehrr1.graph.chains.ledger import Ledger
from ehrr1.graph.chains.messages import write_messages
from ehrr1.graph.chains.prompting import Prompt


def main() -> None:
    ledger, count = Path(sys.argv[1]), int(sys.argv[3])
    settings = AnthropicChains(**yaml.safe_load(Path(sys.argv[2]).read_text()))
    while True:
        child = os.fork()
        if child == 0:
            write(ledger, settings, count)
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        sys.stdin.readline()


def write(path: Path, settings: AnthropicChains, count: int) -> None:
    ask = write_batches if settings.batches else write_messages
    with Ledger(path) as ledger:
        ledger.begin((f"sample {n}" for n in range(count)), settings.drafts)
        ask(settings, ledger, partial(prompts, count), lambda done: None)


def prompts(count: int, wanted: Collection[str]) -> Iterator[tuple[str, Prompt]]:
    for n in range(count):
        if f"sample {n}" in wanted:
            yield f"sample {n}", Prompt("decision.v1", "guidelines", f"record {n}", f"sample {n}")


if __name__ == "__main__":
    main()
