"""Write chains with Claude through the Messages API, using Anthropic's SDK."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from ehrr1.config.writers import AnthropicChains, AnthropicEngineConfig
from ehrr1.errors import UserError
from ehrr1.prompts.messages import broken, mended
from ehrr1.reasoning.endpoint import Api, DraftRequests, MalformedError
from ehrr1.reasoning.ledger import Advance, DraftReply, Ledger
from ehrr1.reasoning.prices import Price, price_of
from ehrr1.reasoning.prompting import Prompt, Prompts

API = Api(
    "anthropic",
    "ANTHROPIC_API_KEY",
    {
        "chains": "chains.temperature (1.0 for models from Claude 4.7 on), chains.max_tokens",
        "engine": "eval.max_new_tokens",
    },
)

OWN_ADDRESS = "https://api.anthropic.com"

SAMPLING_VERSION = "2023-06-01"
"""The last API version that accepts a temperature; from 2026-10-21 on the API rejects one."""

CACHED = {"cache_control": {"type": "ephemeral"}}


def client_settings(settings: AnthropicChains | AnthropicEngineConfig) -> dict[str, Any]:
    """Return the arguments of the SDK's clients, with an explicit address.

    The address is never taken from the environment.
    """
    return {
        "api_key": os.environ[API.key],
        "base_url": settings.base_url or OWN_ADDRESS,
        "max_retries": settings.max_retries,
        "timeout": settings.timeout_seconds,
    }


def request(settings: AnthropicChains, prompt: Prompt, shared: bool) -> dict[str, Any]:
    """Return the body of one request for a draft.

    With `shared`, other requests read the same prompt from the cache. Text in the record and the
    question that looks like a marker is broken up (`prompts.messages.broken`).
    """
    texts = (broken(prompt.record), broken(prompt.question))
    return request_body(str(settings.model), settings.max_tokens, prompt.system, texts, 2 * shared)


def request_body(
    model: str, max_tokens: int, system: str, said: Sequence[str], cached: int
) -> dict[str, Any]:
    """Return a request with a user message of several blocks.

    The first `cached` blocks are cached for requests with the same beginning. Writing to the cache
    costs more than sending them once.
    """
    blocks = [
        {"type": "text", "text": text, **(CACHED if number < cached else {})}
        for number, text in enumerate(said)
        if text  # the API rejects empty blocks
    ]
    return {
        "model": model,
        "max_tokens": max_tokens,
        "system": [{"type": "text", "text": system, **CACHED}],
        "messages": [{"role": "user", "content": blocks}],
    }


def sampling(settings: AnthropicChains) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the additions to body and headers that set a temperature.

    There are none for a temperature of 1, which is the API's default.
    """
    if settings.temperature == 1:
        return {}, {}
    return {"temperature": settings.temperature}, {"anthropic-version": SAMPLING_VERSION}


def read_message(body: Any, price: Price) -> DraftReply:
    """Parse the JSON body of a message; raises MalformedError if it is not one.

    Refused, cut-off and empty answers are valid: they are charged for, and screening rejects them.
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
    return DraftReply(mended(text.strip()), reason, plain + write + read, output, write, read, cost)


def write_messages(
    settings: AnthropicChains, ledger: Ledger, prompts: Prompts, advance: Advance
) -> None:
    """Request every draft that is open in the ledger, each at most `ATTEMPTS` times.

    Raises UserError if the budget is spent, the endpoint refuses a request or does not answer, or
    batches of this run are still pending.
    """
    if batches := ledger.batches():
        raise UserError(
            f"chains.batches=false: {len(batches)} batches of this run are paid for and not taken "
            "in yet; set chains.batches=true until they are"
        )
    import anthropic

    client = anthropic.AsyncAnthropic(**client_settings(settings))
    price = price_of(settings.price)
    more, headers = sampling(settings)

    async def send(prompt: Prompt, shared: bool) -> DraftReply:
        raw = await client.messages.with_raw_response.create(
            **request(settings, prompt, shared), extra_body=more, extra_headers=headers
        )
        return read_message(raw.http_response.json(), price)

    asking = DraftRequests(API, anthropic, send, settings, ledger, advance)
    asyncio.run(asking.write(client, prompts))
