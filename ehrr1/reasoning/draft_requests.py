"""Requests for drafts to an API: what `chains=anthropic` and `chains=openai` have in common.

A few coroutines (`chains.concurrency`) take one sample after another and request its drafts in
turn. Where prompts are cached, the first request writes the prompt into the cache and the others
read it. The SDK retries overload, rate limits, failures and broken connections; every answer is in
the ledger before the next request is sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from ehrr1.config.writers import EndpointChains
from ehrr1.engines.endpoint import OUTAGE, Api, MalformedError, may_pass, refused, unreachable
from ehrr1.errors import UserError
from ehrr1.reasoning.ledger import Advance, Budget, DraftReply, Ledger, over_budget
from ehrr1.reasoning.prices import price_of
from ehrr1.reasoning.prompting import Prompt, Prompts

Send = Callable[[Prompt, bool], Awaitable[DraftReply]]
"""Requests one draft of a prompt; True: other drafts of it will be requested too.

Raises the SDK's errors, MalformedError, or UserError if the run has to stop.
"""


class DraftRequests:
    """Requests every draft that the ledger wants, each a few times at most.

    `sdk` is the imported module: those that we use name their errors alike.
    """

    def __init__(
        self,
        api: Api,
        sdk: Any,
        send: Send,
        settings: EndpointChains,
        ledger: Ledger,
        advance: Advance,
    ):
        self.api, self.sdk, self.send = api, sdk, send
        self.settings, self.ledger, self.advance = settings, ledger, advance
        self.price = price_of(settings.price)
        self.budget = Budget(ledger, settings.budget_tokens, settings.budget_usd)
        self.stop: UserError | None = None
        self.refused = False
        self.unanswered = 0

    async def write(self, client: AbstractAsyncContextManager[Any], prompts: Prompts) -> None:
        """Request every draft that the ledger wants; close the client at the end.

        `client` is the one that `send` uses. Raises UserError if the budget is spent, or the
        endpoint refuses or does not answer.
        """
        async with client:
            while (wanted := self.ledger.wanted()) and self.stop is None:
                jobs = ((name, wanted[name], prompt) for name, prompt in prompts(set(wanted)))
                # all of them take from the same generator
                workers = [self._work(jobs) for _ in range(self.settings.concurrency)]
                await asyncio.gather(*workers)
                if self.refused and self.stop is None:
                    self.stop = over_budget(self.ledger, self.settings)
        if self.stop is not None:
            raise self.stop

    async def _work(self, jobs: Iterator[tuple[str, Sequence[int], Prompt]]) -> None:
        """Take samples until there are none, or until the run has to stop."""
        if self.stop is not None:
            return
        for sample_id, drafts, prompt in jobs:
            for draft in drafts:
                if not await self._draft(sample_id, draft, prompt, shared=len(drafts) > 1):
                    return
                if self.stop is not None:
                    return

    async def _draft(self, sample_id: str, draft: int, prompt: Prompt, shared: bool) -> bool:
        """Ask for one draft; False where the budget does not allow it."""
        most = prompt.estimated_tokens
        tokens = most + self.settings.max_tokens
        dollars = self.price.at_most(most, self.settings.max_tokens)
        if not self.budget.reserve(tokens, dollars):
            # those that are under way may use less than was set aside: they go on by themselves
            self.refused = True
            return False
        self.ledger.sent(sample_id, draft, prompt)
        found = await self._ask(prompt, shared)
        self.budget.settle(tokens, dollars, found if isinstance(found, DraftReply) else None)
        if isinstance(found, DraftReply):
            self.ledger.answered([(sample_id, draft, found)])
            self.unanswered = 0
            self.advance(1)
        elif self.stop is None:
            self.ledger.missed([(sample_id, draft, found)])
            self.unanswered += 1
            if self.unanswered >= max(OUTAGE, 2 * self.settings.concurrency):
                self.stop = unreachable(self.api, found)
        return True

    async def _ask(self, prompt: Prompt, shared: bool) -> DraftReply | str:
        """Return the answer, or the reason why there is none."""
        try:
            return await self.send(prompt, shared)
        except UserError as error:
            self.stop = self.stop or error
            return str(error)
        except self.sdk.APIStatusError as error:
            if not may_pass(error.status_code):
                self.stop = self.stop or refused(self.api, error.status_code, error.message)
            return f"status {error.status_code}"
        except self.sdk.APIConnectionError as error:
            return type(error).__name__
        except ValueError as error:  # no JSON, or no message
            return str(error) if isinstance(error, MalformedError) else "malformed answer (no JSON)"
