"""Write chains through chat completions, using OpenAI's SDK.

The endpoint may be OpenAI's, Azure's, or any compatible server such as vLLM's.
"""

import asyncio
import os
from typing import Any

from ehrr1.config.writers import OpenAIChains
from ehrr1.engines import endpoint
from ehrr1.engines.endpoint import NO_KEY, Api, MalformedError, is_local, refused
from ehrr1.prompts.messages import broken
from ehrr1.reasoning.draft_requests import DraftRequests
from ehrr1.reasoning.ledger import Advance, DraftReply, Ledger
from ehrr1.reasoning.prices import Price, price_of
from ehrr1.reasoning.prompting import Prompt, Prompts, draft_text

API = Api(
    "openai",
    "OPENAI_API_KEY",
    {
        "chains": "chains.temperature (null for models that think), chains.effort (null for models "
        "that do not), chains.length_setting, chains.max_tokens"
    },
)

OWN_ADDRESS = "https://api.openai.com/v1"

REASONS = {"stop": "end_turn", "length": "max_tokens"}
"""Finish reasons and their names in the ledger; other reasons are kept unchanged."""

FLAGGED = frozenset({"content_filter", "invalid_prompt"})
"""Error codes by which Azure's content filter and OpenAI refuse the content of a prompt.

They have the status of bad requests, cost nothing, and recur on every attempt.
"""

NO_MONEY = "insufficient_quota"
"""An error code with the status of a rate limit, which a retry does not resolve."""


def check(settings: OpenAIChains, open_data: bool) -> None:
    """Raise UserError, before anything is sent, if the endpoint may not or cannot be used."""
    endpoint.check(API, settings, open_data, url=settings.base_url or OWN_ADDRESS)


def open_client(settings: OpenAIChains) -> Any:
    """Return the SDK's client.

    Requests to this machine bypass any proxy of the environment. Redirects are not followed, since
    they could send records elsewhere. `DraftRequests` retries, so that the budget knows of each
    request.
    """
    import openai

    local = is_local(settings.base_url or OWN_ADDRESS)
    return openai.AsyncOpenAI(
        api_key=os.environ.get(API.key) or NO_KEY,
        base_url=settings.base_url or OWN_ADDRESS,
        max_retries=0,
        timeout=settings.timeout_seconds,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not local, follow_redirects=False),
    )


def request(settings: OpenAIChains, prompt: Prompt) -> dict[str, Any]:
    """Return the body of one request for a draft.

    Text in the record and the question that looks like a marker is broken up
    (`prompts.messages.broken`).
    """
    system, user = prompt.messages()
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [system, user | {"content": broken(user["content"])}],
        settings.length_setting: settings.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.effort is not None:
        body["reasoning_effort"] = settings.effort
    return body


def read_completion(body: Any, price: Price) -> DraftReply:
    """Parse the JSON body of a completion; raises MalformedError if it is not one.

    Refused, cut-off and empty answers are valid: they are charged for, and screening rejects them.
    """
    try:
        choice, usage = body["choices"][0], body["usage"]
        text = draft_text(choice["message"]["content"] or "")
        told = str(choice["finish_reason"])
        reason = "refusal" if choice["message"].get("refusal") else REASONS.get(told, told)
        prompt, output = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        details = usage.get("prompt_tokens_details") or {}
        write = int(details.get("cache_write_tokens") or 0)
        read = int(details.get("cached_tokens") or 0)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise MalformedError(f"malformed answer ({type(error).__name__})") from error
    cost = price.of(prompt - write - read, output, write, read)
    return DraftReply(text, reason, prompt, output, write, read, cost)


def write_completions(
    settings: OpenAIChains, ledger: Ledger, prompts: Prompts, advance: Advance
) -> None:
    """Request every draft that is open in the ledger, each at most `ATTEMPTS` times.

    Raises UserError if the budget is spent, the endpoint refuses a request, or it does not answer.
    """
    import openai

    client, price = open_client(settings), price_of(settings.price)

    async def send(prompt: Prompt, shared: bool) -> DraftReply:
        try:
            create = client.chat.completions.with_raw_response.create
            raw = await create(**request(settings, prompt))
            return read_completion(raw.http_response.json(), price)
        except openai.BadRequestError as error:
            if error.code not in FLAGGED:
                raise
            return DraftReply("", str(error.code), 0, 0)
        except openai.RateLimitError as error:
            if error.code != NO_MONEY:
                raise
            raise refused(API, error.status_code, error.message) from error

    asking = DraftRequests(API, openai, send, settings, ledger, advance)
    asyncio.run(asking.write(client, prompts))
