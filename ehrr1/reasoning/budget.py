"""Keep the cost of requests below `chains.budget_tokens` and `chains.budget_usd`.

Each request reserves its maximum cost before it is sent. A reservation is replaced by the usage
that the endpoint reports, or released if the endpoint refused the request. It stays if the outcome
is unknown (the connection broke, the answer cannot be read, the process was killed), because such
a request may have been charged. Hence what is spent never exceeds the budget, as long as a
reservation is an upper bound. It is one if

- a prompt has at most one token per UTF-8 byte (true for byte-level tokenizers), plus `OVERHEAD`;
- an answer has at most `chains.max_tokens` tokens, its thinking included;
- `chains.price` is not below the actual prices.

If the endpoint reports more than was reserved, these assumptions are wrong, and later reservations
are raised by the same factor.
"""

import math
from typing import NamedTuple

from ehrr1.config.writers import ModelChains
from ehrr1.errors import UserError
from ehrr1.reasoning.ledger import DraftReply, Ledger
from ehrr1.reasoning.prices import FREE, Price
from ehrr1.reasoning.prompting import Prompt


class Reservation(NamedTuple):
    """The maximum cost of a request, in tokens (prompt and answer) and US dollars."""

    tokens: int
    usd: float


class Budget:
    """The remaining budget of a run, shared by the requests that are in progress."""

    def __init__(
        self, ledger: Ledger, tokens: int | None, usd: float | None = None, price: Price = FREE
    ):
        spent = ledger.spent()
        self.tokens, self.usd, self.price = tokens, usd, price
        self.used_tokens: float = spent["tokens_in"] + spent["tokens_out"] + spent["unsure_tokens"]
        self.used_usd: float = spent["cost_usd"] + spent["unsure_usd"]
        self.factor = 1.0
        self.lengths: dict[str, int] = {}
        """Reported length in tokens of each prompt that was answered, by the prompt's hash."""

    def maximum(self, prompt: Prompt, max_tokens: int) -> Reservation:
        """Return the maximum cost of a request for one draft of at most `max_tokens` tokens.

        If an earlier draft of the same prompt was answered, its reported length is used.
        """
        length = self.lengths.get(prompt.hash, prompt.max_tokens)
        dollars = self.price.at_most(length, max_tokens)
        return Reservation(math.ceil(self.factor * (length + max_tokens)), self.factor * dollars)

    def reserve(self, most: Reservation) -> bool:
        """Reserve the maximum cost of a request, and return whether the budget allows it.

        If it does not, nothing is reserved.
        """
        if self.tokens is not None and self.used_tokens + most.tokens > self.tokens:
            return False
        if self.usd is not None and self.used_usd + most.usd > self.usd:
            return False
        self.used_tokens += most.tokens
        self.used_usd += most.usd
        return True

    def release(self, most: Reservation) -> None:
        """Remove the reservation of a request that was not charged."""
        self.used_tokens -= most.tokens
        self.used_usd -= most.usd

    def settle(self, most: Reservation, answer: DraftReply, prompt_hash: str) -> None:
        """Replace a reservation by the usage that the answer reports.

        `prompt_hash` is the `Prompt.hash` of the request.
        """
        self.release(most)
        tokens = answer.tokens_in + answer.tokens_out
        self.used_tokens += tokens
        self.used_usd += answer.cost_usd
        if answer.tokens_in:  # 0 if a content filter refused the prompt
            self.lengths[prompt_hash] = answer.tokens_in
        if tokens > most.tokens:
            self.factor *= tokens / most.tokens


def over_budget(ledger: Ledger, settings: ModelChains) -> UserError:
    """Return the error for a spent budget, with progress, spending and the remedy."""
    states, spent = ledger.states(), ledger.spent()
    budget = {
        n: v for n, v in settings.plain().items() if n.startswith("budget_") and v is not None
    }
    budgets = ", ".join(f"chains.{name}={value}" for name, value in budget.items())
    tokens = spent["tokens_in"] + spent["tokens_out"]
    unsure = ""
    if spent["unsure_tokens"]:
        unsure = (
            f" (and at most {spent['unsure_tokens']} tokens, {spent['unsure_usd']:.2f} dollars, by "
            "requests without an answer)"
        )
    return UserError(
        f"{budgets}: {states['done']} of {sum(states.values())} drafts are written, "
        f"{states['open'] + states['sent']} are left; {tokens} tokens and {spent['cost_usd']:.2f} "
        f"dollars are spent{unsure}, and the next request might exceed it. All drafts are saved: "
        f"raise {' or '.join(f'chains.{name}' for name in budget)}, and the same command continues"
    )
