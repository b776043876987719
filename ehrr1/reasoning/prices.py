"""Compute the cost of chains: of an answer, of a request before it is sent, and of a whole run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table

from ehrr1.config import writers
from ehrr1.reasoning.prompting import Prompt

MILLION = 1e6


@dataclass(frozen=True)
class Price:
    """Prices in US dollars per million tokens.

    factor: relative price of a batch request.
    """

    input: float
    output: float
    cache_write: float
    cache_read: float
    factor: float = 1.0

    def of(self, plain: float, output: float, write: float = 0, read: float = 0) -> float:
        """Return the US dollars for these numbers of tokens.

        plain: tokens of the prompt that are neither written to the cache nor read from it.
        """
        dollars = plain * self.input + output * self.output
        return self.factor * (dollars + write * self.cache_write + read * self.cache_read) / MILLION

    def at_most(self, prompt: int, output: int) -> float:
        """Return the maximum cost in US dollars of a request, given its lengths in tokens."""
        return max(self.of(prompt, output), self.of(0, output, write=prompt))


FREE = Price(0, 0, 0, 0)
"""The price of a model on this machine."""


def price_of(price: writers.Price, factor: float = 1.0) -> Price:
    """Return the prices in `chains.price`; `factor` is the relative price of a batch."""
    return Price(price.input, price.output, price.cache_write, price.cache_read, factor)


class CostEstimate(NamedTuple):
    """Sums over all requests.

    `plain`, `write` and `read` divide `tokens_in` as prompt caching would. cut: samples whose
    record was cut.
    """

    samples: int = 0
    requests: int = 0
    cut: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    plain: int = 0
    write: int = 0
    read: int = 0


def estimate(asked: Iterable[tuple[Prompt, int]], max_tokens: int) -> CostEstimate:
    """Sum up prompts, each given with its number of drafts.

    With caching, the guidelines are written by the first request and read by all others; a prompt
    with several drafts is written once and then read.
    """
    total = CostEstimate()
    for prompt, drafts in asked:
        whole = prompt.estimated_tokens
        system = round(whole * len(prompt.system) / max(prompt.chars, 1))
        read = system * (drafts - (total.samples == 0))
        write = system * (total.samples == 0)
        if drafts > 1:
            read += (whole - system) * (drafts - 1)
            write += whole - system
        sums = (1, drafts, prompt.cut > 0, whole * drafts, max_tokens * drafts)
        parts = (whole * drafts - read - write, write, read)
        total = CostEstimate(*(a + b for a, b in zip(total, (*sums, *parts), strict=True)))
    return total


def estimate_table(found: CostEstimate, settings: writers.ModelChains, counted_by: str) -> Table:
    """Return the table of the dry run: the requests and their maximum cost."""
    ways, told = ways_of(settings)
    table = Table(
        title=f"chains={settings.of('writer')}, model {settings.model}: {found.samples:,} samples, "
        f"{found.requests:,} requests, {found.cut:,} records cut",
        caption=f"tokens of prompts by {counted_by}, of answers as if each had all of "
        f"chains.max_tokens; {told}",
    )
    for heading in ("way", "tokens in", "tokens out", "dollars, at most"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    tokens = (f"{found.tokens_in:,}", f"{found.tokens_out:,}")
    if not ways:
        table.add_row("on this machine", *tokens, "-")
    for way, (price, mark) in ways.items():
        plain = price.of(found.tokens_in, found.tokens_out)
        cached = price.of(found.plain, found.tokens_out, found.write, found.read)
        table.add_row(f"{way}, nothing cached", *tokens, f"{plain:,.2f}")
        table.add_row(f"{way}, prompts cached{mark}", *tokens, f"{cached:,.2f}")
    return table


def ways_of(settings: writers.ModelChains) -> tuple[dict[str, tuple[Price, str]], str]:
    """Return the ways to query an endpoint, and a note about them.

    Each way has its price and a mark if it is the one that is set.
    """
    if isinstance(settings, writers.AnthropicChains):
        single, batch = price_of(settings.price), price_of(settings.price, settings.price.batch)
        marks = ("", " *") if settings.batches else (" *", "")
        return {"Messages": (single, marks[0]), "Message Batches": (batch, marks[1])}, "*: as set"
    if isinstance(settings, writers.OpenAIChains):
        ways = {"Chat Completions": (price_of(settings.price), "")}
        return ways, "prompts are cached where the endpoint does so by itself"
    return {}, "nothing is paid"
