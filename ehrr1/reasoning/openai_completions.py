"""Chains by chat completions, through OpenAI's own SDK: OpenAI's models, those of Azure, and any
server that speaks them, such as vLLM's."""

import asyncio
import os
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from ehrr1.config.writers import OpenAIChains
from ehrr1.prompts.messages import broken
from ehrr1.reasoning import endpoint
from ehrr1.reasoning.endpoint import Api, DraftRequests, MalformedError, refused
from ehrr1.reasoning.ledger import Advance, DraftReply, Ledger
from ehrr1.reasoning.prices import Price, price_of
from ehrr1.reasoning.prompting import Prompt, Prompts, draft_text

API = Api(
    "openai",
    "OPENAI_API_KEY",
    {
        "chains": "chains.temperature (null for models that think), chains.length_setting, "
        "chains.max_tokens"
    },
)

OWN_ADDRESS = "https://api.openai.com/v1"

NO_KEY = "none"
"""What a server on this machine is told that wants no key; the SDK sends one in any case."""

REASONS = {"stop": "end_turn", "length": "max_tokens"}
"""Why a draft ended, in the ledger's words; other reasons are kept as they are."""

FLAGGED = frozenset({"content_filter", "invalid_prompt"})
"""Refusals of one prompt for what it says, as Azure's filter and OpenAI name them. They come as bad
requests, cost nothing, and do not pass."""

NO_MONEY = "insufficient_quota"
"""Comes as a rate limit, and does not pass either."""


def check(settings: OpenAIChains, open_data: bool) -> None:
    """Raise UserError, before anything is sent, where it must not or cannot be."""
    endpoint.check(API, settings, open_data, local=on_this_machine(settings.base_url))


def on_this_machine(base_url: str | None) -> bool:
    """Whether an endpoint is this machine, by its address: localhost or a loopback address."""
    host = urlsplit(base_url or OWN_ADDRESS).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def open_client(settings: OpenAIChains) -> Any:
    """The SDK's client. What is meant for this machine goes to it straight, whatever proxy the
    environment names. No redirect is followed: it would carry records elsewhere."""
    import openai

    local = on_this_machine(settings.base_url)
    return openai.AsyncOpenAI(
        api_key=os.environ.get(API.key) or NO_KEY,
        base_url=settings.base_url or OWN_ADDRESS,
        max_retries=settings.max_retries,
        timeout=settings.timeout_seconds,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not local, follow_redirects=False),
    )


def request(settings: OpenAIChains, prompt: Prompt) -> dict[str, Any]:
    """The body of one request for a draft. What looks like a marker in record and question is
    broken (`prompts.messages.broken`)."""
    system, user = prompt.messages()
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [system, user | {"content": broken(user["content"])}],
        settings.length_setting: settings.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    return body


def read_completion(body: Any, price: Price) -> DraftReply:
    """A completion as it came over the wire; raises MalformedError for anything else.

    Refused, cut off and empty answers are answers: they are paid for, and screening rejects them.
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
    """Ask for every draft that the ledger wants, each a few times at most.

    Raises UserError where the budget is spent, the endpoint refuses, or it does not answer.
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
