"""Writers of chains behind an API: what `chains=anthropic` and `chains=openai` have in common.

A few coroutines (`chains.concurrency`) take samples one after the other and ask for a sample's
drafts in turn: where prompts are cached, the first writes the prompt into the cache and the others
read it there. The SDK repeats what was refused for overload or rate limits, failed or broke off;
every answer stands in the ledger before the next request is sent.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from ehrr1.config.writers import AnthropicEngineConfig, EndpointChains
from ehrr1.errors import UserError
from ehrr1.reasoning.ledger import Advance, Budget, DraftReply, Ledger, over_budget
from ehrr1.reasoning.prices import price_of
from ehrr1.reasoning.prompting import Prompt, Prompts

OUTAGE = 20
"""Requests in a row without an answer, after all retries, that end the run."""

WRITE_HERE = "write on this machine (chains=vllm or chains=transformers)"

Send = Callable[[Prompt, bool], Awaitable[DraftReply]]
"""Asks for one draft of a prompt; true: other drafts of it are asked for too. Raises the SDK's
errors, MalformedError, or UserError where the run has to stop."""


class MalformedError(ValueError):
    """An answer that is no message."""


@dataclass(frozen=True)
class Api:
    """An API: the name by which it is chosen, which is also that of its SDK, the environment
    variable with its key, and, by the group of settings, what else than the model and the prompt's
    length it refuses."""

    name: str
    key: str
    limits: Mapping[str, str]


def check(
    api: Api,
    settings: EndpointChains | AnthropicEngineConfig,
    open_data: bool,
    *,
    group: str = "chains",
    here: str = WRITE_HERE,
    local: bool = False,
) -> None:
    """Raise UserError, before anything is sent, where it must not or cannot be.

    `open_data`: whether the prepared records are open (`runs.data_is_open`). `group`: whose
    settings they are; `here`: what to do instead. `local`: the endpoint is this machine, so that
    records do not leave it, and a key is its own affair.
    """
    problems = []
    if not (open_data or settings.compliant_endpoint or local):
        problems.append(
            f"{group}={api.name}: the prepared records are closed, and "
            "this sends them to a third party, which the data use agreement of credentialed "
            f"records forbids; {here}, or set {group}.compliant_endpoint=true if your agreement "
            "covers this endpoint"
        )
    if not (os.environ.get(api.key) or local):
        problems.append(
            f"{api.key} is not set: {group}={api.name} needs a key; export {api.key}=..."
        )
    if find_spec(api.name) is None:
        problems.append(
            f"{group}={api.name}: the SDK is not installed; "
            f"pip install -c constraints.txt {api.name}"
        )
    parts = urlsplit(settings.base_url or "https://its.own")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problems.append(f"{group}.base_url={settings.base_url}: give it as https://HOST/...")
    if problems:
        raise UserError("; ".join(problems))


def may_pass(status: int) -> bool:
    """Whether a refusal with this HTTP status can be overcome by asking again."""
    return status in (408, 409, 429) or status >= 500


def refused(api: Api, status: int, message: str, group: str = "chains") -> UserError:
    """Why the endpoint will not answer, however often it is asked."""
    settings = f"check {group}.model, {api.limits[group]} and {group}.max_prompt_chars"
    hints = {
        400: settings,
        401: f"check {api.key}",
        403: f"check {api.key} and what it may do",
        404: f"check {group}.model and {group}.base_url",
        413: f"lower {group}.max_prompt_chars",
        422: settings,
    }
    hint = hints.get(status, f"check the account and {group}.base_url")
    said = " ".join(message.split())[:300]
    return UserError(
        f"{group}={api.name}: the endpoint refuses the request with status {status} ({said}); "
        f"{hint}. What was written is saved"
    )


def unreachable(api: Api, reason: str, group: str = "chains") -> UserError:
    return UserError(
        f"{group}={api.name}: the endpoint does not answer ({reason}); check {group}.base_url and "
        "the network. What was written is saved: the same command goes on"
    )


class DraftRequests:
    """Asks for every draft that the ledger wants, each a few times at most.

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
        """Raises UserError where the budget is spent, the endpoint refuses, or does not answer.
        The client, by which `send` asks, is closed at the end."""
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
        """The answer, or why there is none."""
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
