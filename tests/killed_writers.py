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
import openai  # noqa: F401
import yaml
from pydantic import TypeAdapter

from ehrr1.config.writers import AnthropicChains, Chains, EndpointChains, OpenAIChains
from ehrr1.reasoning.anthropic_batches import write_batches
from ehrr1.reasoning.anthropic_messages import write_messages
from ehrr1.reasoning.ledger import Ledger
from ehrr1.reasoning.openai_completions import write_completions
from ehrr1.reasoning.prompting import Prompt


def main() -> None:
    ledger, count = Path(sys.argv[1]), int(sys.argv[3])
    text = Path(sys.argv[2]).read_text()
    settings: EndpointChains = TypeAdapter(Chains).validate_python(yaml.safe_load(text))
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


def write(path: Path, settings: EndpointChains, count: int, more: str = "") -> None:
    """Fill the ledger as `stage=chains` does, with prompts of a few words and `more`."""
    with Ledger(path) as ledger:
        ledger.begin((f"sample {n}" for n in range(count)), settings.drafts)
        given = (ledger, partial(prompts, count, more=more), lambda done: None)
        if isinstance(settings, OpenAIChains):
            write_completions(settings, *given)
        elif isinstance(settings, AnthropicChains) and settings.batches:
            write_batches(settings, *given)
        elif isinstance(settings, AnthropicChains):
            write_messages(settings, *given)


def prompts(count: int, wanted: Collection[str], more: str = "") -> Iterator[tuple[str, Prompt]]:
    """Yield prompts of a few words, each with the system text "guidelines" and `more`."""
    for n in range(count):
        if f"sample {n}" in wanted:
            texts = (f"guidelines{more}", f"record {n}{more}", f"sample {n}")
            yield f"sample {n}", Prompt("decision.v1", *texts)


if __name__ == "__main__":
    main()
