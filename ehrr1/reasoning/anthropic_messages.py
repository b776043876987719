"""Write chains with Claude through the Messages API, using Anthropic's SDK."""

import asyncio
from typing import Any

from ehrr1.config.writers import AnthropicChains
from ehrr1.engines.anthropic import API, Message, async_client, read_message, request_body
from ehrr1.errors import UserError
from ehrr1.prompts.messages import broken, mended
from ehrr1.reasoning.draft_requests import DraftRequests
from ehrr1.reasoning.ledger import Advance, DraftReply, Ledger
from ehrr1.reasoning.prices import Price, price_of
from ehrr1.reasoning.prompting import Prompt, Prompts

SAMPLING_VERSION = "2023-06-01"
"""The last API version that accepts a temperature; from 2026-10-21 on the API rejects one."""


def request(settings: AnthropicChains, prompt: Prompt, shared: bool) -> dict[str, Any]:
    """Return the body of one request for a draft.

    With `shared`, other requests read the same prompt from the cache. Text in the record and the
    question that looks like a marker is broken up (`prompts.messages.broken`).
    """
    texts = (broken(prompt.record), broken(prompt.question))
    return request_body(
        str(settings.model),
        settings.max_tokens,
        prompt.system,
        texts,
        2 * shared,
        thinking=settings.thinking,
        effort=settings.effort,
    )


def sampling(settings: AnthropicChains) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the additions to body and headers that set a temperature.

    There are none for a temperature of 1, which is the API's default.
    """
    if settings.temperature == 1:
        return {}, {}
    return {"temperature": settings.temperature}, {"anthropic-version": SAMPLING_VERSION}


def draft_reply(message: Message, price: Price) -> DraftReply:
    """Return a message as the reply to a request for a draft, with its cost."""
    cost = price.of(*message.usage)
    plain, output, write, read = message.usage
    text = mended(message.text)
    return DraftReply(text, message.stop_reason, plain + write + read, output, write, read, cost)


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

    # `DraftRequests` retries, so that the budget knows of each request
    client = async_client(settings, max_retries=0)
    price = price_of(settings.price)
    more, headers = sampling(settings)

    async def send(prompt: Prompt, shared: bool) -> DraftReply:
        raw = await client.messages.with_raw_response.create(
            **request(settings, prompt, shared), extra_body=more, extra_headers=headers
        )
        return draft_reply(read_message(raw.http_response.json()), price)

    asking = DraftRequests(API, anthropic, send, settings, ledger, advance)
    asyncio.run(asking.write(client, prompts))
