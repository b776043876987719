"""Compute the cost of chains: of an answer, of a request before it is sent, and of a whole run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table

from ehrr1.config import writers
from ehrr1.engines.anthropic import cacheable_tokens
from ehrr1.reasoning.prompting import CHARS_PER_TOKEN, Prompt

MILLION = 1e6

EXPECTED_SHARE = 0.25
"""Expected share of `chains.max_tokens` that an answer uses, its thinking included.

Assumed: a chain has about 1,000 tokens, and as many of thinking.
"""

OPENAI_CACHEABLE = 1024
"""Minimum tokens of a prompt that OpenAI caches, by its documentation."""


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

    cut: samples whose record was cut. `plain`, `write` and `read` divide the expected `tokens_in`
    as prompt caching would. most_in: upper bound of `tokens_in` (`Prompt.max_tokens`).
    """

    samples: int = 0
    requests: int = 0
    cut: int = 0
    tokens_in: int = 0
    most_in: int = 0
    plain: int = 0
    write: int = 0
    read: int = 0


def estimate(asked: Iterable[tuple[Prompt, int]], cacheable: int) -> CostEstimate:
    """Sum up prompts, each given with its number of drafts.

    With caching, the guidelines are written by the first request and read by all others; a prompt
    with several drafts is written once and then read. What is shorter than `cacheable` tokens is
    not cached.
    """
    total = CostEstimate()
    for prompt, drafts in asked:
        whole = prompt.estimated_tokens
        system = round(whole * len(prompt.system) / max(prompt.chars, 1))
        if system < cacheable:
            system = 0
        read = system * (drafts - (total.samples == 0))
        write = system * (total.samples == 0)
        if drafts > 1 and whole >= cacheable:
            read += (whole - system) * (drafts - 1)
            write += whole - system
        sums = (1, drafts, prompt.cut > 0, whole * drafts, prompt.max_tokens * drafts)
        parts = (whole * drafts - read - write, write, read)
        total = CostEstimate(*(a + b for a, b in zip(total, (*sums, *parts), strict=True)))
    return total


def estimate_table(found: CostEstimate, settings: writers.ModelChains) -> Table:
    """Return the table of the dry run: the requests, their expected and their maximum cost."""
    ways, told = ways_of(settings)
    most_out = settings.max_tokens * found.requests
    out = round(most_out * EXPECTED_SHARE)
    table = Table(
        title=f"chains={settings.of('writer')}, model {settings.model}: {found.samples:,} samples, "
        f"{found.requests:,} requests, {found.cut:,} records cut",
        caption=f"expected: {CHARS_PER_TOKEN} characters a token, and answers of "
        f"{EXPECTED_SHARE:.0%} of chains.max_tokens; at most: a token for each byte, all of it "
        f"written to the cache, all of chains.max_tokens, each draft answered once; {told}",
    )
    for heading in ("way", "tokens in", "tokens out", "dollars"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    expected, most = (f"{found.tokens_in:,}", f"{out:,}"), (f"{found.most_in:,}", f"{most_out:,}")
    if not ways:
        table.add_row("on this machine, expected", *expected, "-")
        table.add_row("on this machine, at most", *most, "-")
    for way, (price, mark) in ways.items():
        plain = price.of(found.tokens_in, out)
        cached = price.of(found.plain, out, found.write, found.read)
        dearest = price.at_most(found.most_in, most_out)
        table.add_row(f"{way}, nothing cached", *expected, f"{plain:,.2f}")
        table.add_row(f"{way}, prompts cached", *expected, f"{cached:,.2f}")
        table.add_row(f"{way}, at most{mark}", *most, f"{dearest:,.2f}")
    return table


def ways_of(settings: writers.ModelChains) -> tuple[dict[str, tuple[Price, str]], str]:
    """Return the ways to query an endpoint, and a note about them.

    Each way has its price and a mark if it is the one that is set.
    """
    if isinstance(settings, writers.AnthropicChains):
        single, batch = price_of(settings.price), price_of(settings.price, settings.price.batch)
        marks = ("", " *") if settings.batches else (" *", "")
        least = f"{cacheable_tokens(str(settings.model)):,} tokens are the least that is cached"
        ways = {"Messages": (single, marks[0]), "Message Batches": (batch, marks[1])}
        return ways, f"*: as set; {least}"
    if isinstance(settings, writers.OpenAIChains):
        ways = {"Chat Completions": (price_of(settings.price), "")}
        return ways, "prompts are cached where the endpoint does so by itself"
    return {}, "nothing is paid"


def cacheable_length(settings: writers.ModelChains) -> int:
    """Return the minimum tokens of a text that the endpoint caches."""
    if isinstance(settings, writers.AnthropicChains):
        return cacheable_tokens(str(settings.model))
    return OPENAI_CACHEABLE
