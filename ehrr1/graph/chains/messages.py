"""Chains by Claude: the Messages API, through Anthropic's own SDK.

A few coroutines (`chains.concurrency`) take samples one after the other and ask for a sample's
drafts in turn: the first writes the prompt into the cache, the others read it there. The SDK
repeats what was refused for overload or rate limits, failed or broke off; every answer stands in
the ledger before the next request is sent.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from ehrr1.config.writers import AnthropicChains, AnthropicEngine
from ehrr1.errors import UserError
from ehrr1.graph.chains.costs import Price, price_of
from ehrr1.graph.chains.ledger import Advance, Answer, Budget, Ledger, over_budget
from ehrr1.graph.chains.prompting import Prompt, Prompts
from ehrr1.prompts.messages import broken, mended

OWN_ADDRESS = "https://api.anthropic.com"
KEY = "ANTHROPIC_API_KEY"

SAMPLING_VERSION = "2023-06-01"
"""The last version of the API that takes a temperature; from 2026-10-21 on it refuses one."""

OUTAGE = 20
"""Requests in a row without an answer, after all retries, that end the run."""

CACHED = {"cache_control": {"type": "ephemeral"}}


def check(
    settings: AnthropicChains | AnthropicEngine,
    open_data: bool,
    group: str = "chains",
    here: str = "write on this machine (chains=vllm or chains=transformers)",
) -> None:
    """Raise UserError, before anything is sent, where it must not or cannot be.

    `open_data`: whether the prepared records are open (`runs.data_is_open`). `group`: whose
    settings they are; `here`: what to do instead.
    """
    problems = []
    if not open_data and not settings.compliant_endpoint:
        problems.append(
            f"{group}=anthropic: the prepared records are closed, and "
            "this sends them to a third party, which the data use agreement of credentialed "
            f"records forbids; {here}, or set {group}.compliant_endpoint=true if your agreement "
            "covers this endpoint"
        )
    if not os.environ.get(KEY):
        problems.append(f"{KEY} is not set: {group}=anthropic needs a key; export {KEY}=...")
    if find_spec("anthropic") is None:
        problems.append(
            f"{group}=anthropic: the SDK is not installed; pip install -c constraints.txt anthropic"
        )
    if problems:
        raise UserError("; ".join(problems))


def client_settings(settings: AnthropicChains | AnthropicEngine) -> dict[str, Any]:
    """What both of the SDK's clients are made with; the address never comes from elsewhere."""
    return {
        "api_key": os.environ[KEY],
        "base_url": settings.base_url or OWN_ADDRESS,
        "max_retries": settings.max_retries,
        "timeout": settings.timeout_seconds,
    }


def request(settings: AnthropicChains, prompt: Prompt, shared: bool) -> dict[str, Any]:
    """The body of one request for a draft; `shared`: others will read the prompt from the cache.
    What looks like a marker in record and question is broken (`prompts.messages.broken`)."""
    texts = (broken(prompt.record), broken(prompt.question))
    return request_body(str(settings.model), settings.max_tokens, prompt.system, texts, 2 * shared)


def request_body(
    model: str, max_tokens: int, system: str, said: Sequence[str], cached: int
) -> dict[str, Any]:
    """A request in which a user says something in several blocks, the first `cached` of which are
    kept for requests that begin alike: that costs more than to send them once."""
    blocks = [
        {"type": "text", "text": text, **(CACHED if number < cached else {})}
        for number, text in enumerate(said)
        if text  # an empty block is refused
    ]
    return {
        "model": model,
        "max_tokens": max_tokens,
        "system": [{"type": "text", "text": system, **CACHED}],
        "messages": [{"role": "user", "content": blocks}],
    }


def sampling(settings: AnthropicChains) -> tuple[dict[str, Any], dict[str, str]]:
    """What a temperature adds to a request's body and headers; 1 is what the API does by itself."""
    if settings.temperature == 1:
        return {}, {}
    return {"temperature": settings.temperature}, {"anthropic-version": SAMPLING_VERSION}


class MalformedError(ValueError):
    """An answer that is no message."""


def read_message(body: Any, price: Price) -> Answer:
    """A message as it came over the wire; raises MalformedError for anything else.

    Refused, cut off and empty answers are answers: they are paid for, and screening rejects them.
    """
    try:
        text = "".join(part["text"] for part in body["content"] if part["type"] == "text")
        usage = body["usage"]
        plain, output = int(usage["input_tokens"]), int(usage["output_tokens"])
        write = int(usage.get("cache_creation_input_tokens") or 0)
        read = int(usage.get("cache_read_input_tokens") or 0)
        reason = str(body["stop_reason"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError(f"malformed answer ({type(error).__name__})") from error
    cost = price.of(plain, output, write, read)
    return Answer(mended(text.strip()), reason, plain + write + read, output, write, read, cost)


def may_pass(status: int) -> bool:
    """Whether a refusal with this HTTP status can be overcome by asking again."""
    return status in (408, 409, 429) or status >= 500


LIMITS = {
    "chains": "chains.temperature (1.0 for models from Claude 4.7 on), chains.max_tokens",
    "engine": "eval.max_new_tokens",
}
"""By the group of settings, what else than the model and the prompt's length is refused."""


def refused(status: int, message: str, group: str = "chains") -> UserError:
    """Why the endpoint will not answer, however often it is asked."""
    hints = {
        400: f"check {group}.model, {LIMITS[group]} and {group}.max_prompt_chars",
        401: f"check {KEY}",
        403: f"check {KEY} and what it may do",
        404: f"check {group}.model and {group}.base_url",
        413: f"lower {group}.max_prompt_chars",
    }
    hint = hints.get(status, f"check the account and {group}.base_url")
    said = " ".join(message.split())[:300]
    return UserError(
        f"{group}=anthropic: the endpoint refuses the request with status {status} ({said}); "
        f"{hint}. What was written is saved"
    )


def unreachable(reason: str, group: str = "chains") -> UserError:
    return UserError(
        f"{group}=anthropic: the endpoint does not answer ({reason}); check {group}.base_url and "
        "the network. What was written is saved: the same command goes on"
    )


def write_messages(
    settings: AnthropicChains, ledger: Ledger, prompts: Prompts, advance: Advance
) -> None:
    """Ask for every draft that the ledger wants, each a few times at most.

    Raises UserError where the budget is spent, the endpoint refuses, or it does not answer.
    """
    if batches := ledger.batches():
        raise UserError(
            f"chains.batches=false: {len(batches)} batches of this run are paid for and not taken "
            "in yet; set chains.batches=true until they are"
        )
    asyncio.run(_Messages(settings, ledger, advance).write(prompts))


class _Messages:
    def __init__(self, settings: AnthropicChains, ledger: Ledger, advance: Advance):
        self.settings, self.ledger, self.advance = settings, ledger, advance
        self.price = price_of(settings, batches=False)
        self.budget = Budget(ledger, settings.budget_tokens, settings.budget_usd)
        self.stop: UserError | None = None
        self.refused = False
        self.unanswered = 0

    async def write(self, prompts: Prompts) -> None:
        from anthropic import AsyncAnthropic

        async with AsyncAnthropic(**client_settings(self.settings)) as self.client:
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
        self.budget.settle(tokens, dollars, found if isinstance(found, Answer) else None)
        if isinstance(found, Answer):
            self.ledger.answered([(sample_id, draft, found)])
            self.unanswered = 0
            self.advance(1)
        elif self.stop is None:
            self.ledger.missed([(sample_id, draft, found)])
            self.unanswered += 1
            if self.unanswered >= max(OUTAGE, 2 * self.settings.concurrency):
                self.stop = unreachable(found)
        return True

    async def _ask(self, prompt: Prompt, shared: bool) -> Answer | str:
        """The answer, or why there is none."""
        import anthropic

        more, headers = sampling(self.settings)
        try:
            raw = await self.client.messages.with_raw_response.create(
                **request(self.settings, prompt, shared), extra_body=more, extra_headers=headers
            )
            return read_message(raw.http_response.json(), self.price)
        except anthropic.APIStatusError as error:
            if not may_pass(error.status_code):
                self.stop = self.stop or refused(error.status_code, error.message)
            return f"status {error.status_code}"
        except anthropic.APIConnectionError as error:
            return type(error).__name__
        except ValueError as error:  # no JSON, or no message
            return str(error) if isinstance(error, MalformedError) else "malformed answer (no JSON)"
