"""Claude, through Anthropic's Messages API: `engine=anthropic`, `chains=anthropic`.

It takes messages in place of token ids and returns no log-probabilities, so that it is no `Engine`:
`evaluation.chat` and `reasoning.anthropic_messages` send its requests.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ehrr1.config.writers import AnthropicChains, AnthropicEngineConfig
from ehrr1.engines.endpoint import Api, MalformedError

API = Api(
    "anthropic",
    "ANTHROPIC_API_KEY",
    {
        "chains": "chains.temperature (1.0 for models from Claude 4.7 on), chains.max_tokens",
        "engine": "eval.max_new_tokens",
    },
)

OWN_ADDRESS = "https://api.anthropic.com"

CACHED = {"cache_control": {"type": "ephemeral"}}


class Usage(NamedTuple):
    """Tokens of one request: input that is not cached, output, cache writes, cache reads."""

    input: int
    output: int
    cache_write: int
    cache_read: int


class Message(NamedTuple):
    """One answer of the API."""

    text: str
    stop_reason: str
    usage: Usage


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


def read_message(body: Any) -> Message:
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
    return Message(text.strip(), reason, Usage(plain, output, write, read))
