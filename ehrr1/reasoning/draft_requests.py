"""Requests for drafts to an API: what `chains=anthropic` and `chains=openai` have in common.

A few coroutines (`chains.concurrency`) take one sample after another and request its drafts in
turn. Where prompts are cached, the first request writes the prompt into the cache and the others
read it. Every answer is in the ledger before the next request is sent.

Overload, rate limits, server errors and broken connections are retried here and not by the SDK,
because a request whose connection broke may have been charged, and the budget has to know of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from ehrr1.config.writers import EndpointChains
from ehrr1.engines.endpoint import OUTAGE, Api, MalformedError, may_pass, refused, unreachable
from ehrr1.errors import UserError
from ehrr1.reasoning.budget import Budget, Reservation, over_budget
from ehrr1.reasoning.ledger import Advance, DraftReply, Ledger, SentRequest
from ehrr1.reasoning.prices import price_of
from ehrr1.reasoning.prompting import Prompt, Prompts

Send = Callable[[Prompt, bool], Awaitable[DraftReply]]
"""Requests one draft of a prompt; True: other drafts of it will be requested too.

Raises the SDK's errors, MalformedError, or UserError if the run has to stop.
"""

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""Errors of the HTTP client before a request was sent: it cannot have been charged."""

LONGEST_PAUSE = 60.0
"""Maximum number of seconds between two attempts."""


class NoReply(NamedTuple):
    """A request without an answer.

    again: a retry may succeed. charged: the request may have been charged. retry_after: the
    endpoint's header of that name.
    """

    reason: str
    again: bool = False
    charged: bool = False
    retry_after: str | None = None


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
        price = price_of(settings.price)
        self.budget = Budget(ledger, settings.budget_tokens, settings.budget_usd, price)
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
        """Request one draft; return False if the budget does not allow it."""
        most = self.budget.maximum(prompt, self.settings.max_tokens)
        request = SentRequest(sample_id, draft, prompt, *most)
        last: NoReply | None = None
        for attempt in range(self.settings.max_retries + 1):
            if last is not None:
                await asyncio.sleep(pause(attempt - 1, last.retry_after))
                if self.stop is not None:
                    break
            # a request that may have been charged keeps its reservation, and the next one needs
            # its own; a request that the endpoint refused passes its reservation on
            if last is None or last.charged:
                if not self.budget.reserve(most):
                    return self._over_budget(request, last)
                self.ledger.sent([request])
            found = await self._ask(prompt, shared)
            if isinstance(found, DraftReply):
                self._answered(request, most, found)
                return True
            last = found
            if not last.again:
                break
        assert last is not None
        self._missed(request, most, last)
        return True

    def _over_budget(self, request: SentRequest, last: NoReply | None) -> bool:
        """Return False, after recording a draft of which an earlier attempt may be charged.

        Requests in progress may use less than they reserved, so that they continue.
        """
        self.refused = True
        if last is not None:
            self.ledger.missed([(*request[:2], last.reason)], charged=True)
        return False

    def _answered(self, request: SentRequest, most: Reservation, found: DraftReply) -> None:
        """Write an answer into budget and ledger."""
        self.budget.settle(most, found, request.prompt.hash)
        self.ledger.answered([(*request[:2], found)])
        self.unanswered = 0
        self.advance(1)

    def _missed(self, request: SentRequest, most: Reservation, last: NoReply) -> None:
        """Write a failure into budget and ledger; stop the run after too many in a row."""
        if not last.charged:
            self.budget.release(most)
        if self.stop is not None:
            self.ledger.reopen(*request[:2], charged=last.charged)
            return
        self.ledger.missed([(*request[:2], last.reason)], charged=last.charged)
        self.unanswered += 1
        if self.unanswered >= max(OUTAGE, 2 * self.settings.concurrency):
            self.stop = unreachable(self.api, last.reason)

    async def _ask(self, prompt: Prompt, shared: bool) -> DraftReply | NoReply:
        """Return the answer, or the reason why there is none."""
        try:
            return await self.send(prompt, shared)
        except UserError as error:
            self.stop = self.stop or error
            return NoReply(str(error))
        except self.sdk.APIStatusError as error:
            again = may_pass(error.status_code)
            if not again:
                self.stop = self.stop or refused(self.api, error.status_code, error.message)
            after = error.response.headers.get("retry-after")
            return NoReply(f"status {error.status_code}", again=again, retry_after=after)
        except self.sdk.APIConnectionError as error:
            charged = type(error.__cause__).__name__ not in NEVER_SENT
            return NoReply(type(error).__name__, again=True, charged=charged)
        except MalformedError as error:
            return NoReply(str(error), charged=True)
        except ValueError:
            return NoReply("malformed answer (no JSON)", charged=True)


def pause(attempt: int, retry_after: str | None = None) -> float:
    """Return the seconds to wait before the next attempt: exponential, or what the endpoint asks.

    `retry_after` is the header of that name; a date, or more than `LONGEST_PAUSE`, is ignored.
    """
    try:
        wanted = float(retry_after or "")
    except ValueError:
        wanted = 0.0
    return wanted if 0 < wanted <= LONGEST_PAUSE else min(0.5 * 2**attempt, LONGEST_PAUSE)
