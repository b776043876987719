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
        "chains": "chains.temperature (1.0 for models from Claude 4.7 on), chains.max_tokens, "
        "chains.thinking, chains.effort",
        "engine": "eval.max_new_tokens, engine.thinking, engine.effort",
    },
)

OWN_ADDRESS = "https://api.anthropic.com"

CACHED = {"cache_control": {"type": "ephemeral"}}

CACHEABLE = {
    "claude-fable-5": 512,
    "claude-mythos-5": 512,
    "claude-opus-5": 512,
    "claude-sonnet-5-5": 512,
    "claude-haiku-5-5": 512,
    "claude-sonnet-5": 1024,
    "claude-opus-4-8": 1024,
    "claude-opus-4-7": 2048,
    "claude-sonnet-4-6": 2048,
}
"""Minimum tokens of a prefix that is cached, by the beginning of a model's name.

From the prompt caching page of Anthropic's documentation, November 2026. It gives 1024 for Claude
Sonnet 4.6, for which issue 1194 of the Python SDK measured 2048.
"""

LARGEST_CACHEABLE = 4096
"""The minimum of Claude Opus 4.5 and 4.6 and Haiku 4.5, assumed for models not in `CACHEABLE`."""

CHARS_PER_TOKEN = 4.0
"""At most this many characters per token are assumed to decide whether a text can be cached."""


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


def cacheable_tokens(model: str) -> int:
    """Return the minimum tokens of a prefix that the API caches for a model."""
    names = [name for name in CACHEABLE if model.startswith(name)]
    return CACHEABLE[max(names, key=len)] if names else LARGEST_CACHEABLE


def is_cacheable(model: str, prefix: str) -> bool:
    """Return whether a prompt's prefix is certainly long enough for the cache of a model."""
    return len(prefix) / CHARS_PER_TOKEN >= cacheable_tokens(model)


def open_client(settings: AnthropicChains) -> Any:
    """Return the SDK's client; close it after use (see `async_client`)."""
    import anthropic  # slow to import

    http = anthropic.DefaultHttpxClient(follow_redirects=False)
    return anthropic.Anthropic(**_client_settings(settings), http_client=http)


def async_client(settings: AnthropicChains | AnthropicEngineConfig, **others: Any) -> Any:
    """Return the SDK's client of asynchronous calls; `others` replace settings.

    The address is never taken from the environment. Redirects are not followed, since they could
    send records elsewhere.
    """
    import anthropic

    http = anthropic.DefaultAsyncHttpxClient(follow_redirects=False)
    return anthropic.AsyncAnthropic(**_client_settings(settings) | others, http_client=http)


def _client_settings(settings: AnthropicChains | AnthropicEngineConfig) -> dict[str, Any]:
    return {
        "api_key": os.environ[API.key],
        "base_url": settings.base_url or OWN_ADDRESS,
        "max_retries": settings.max_retries,
        "timeout": settings.timeout_seconds,
    }


def request_body(
    model: str,
    max_tokens: int,
    system: str,
    said: Sequence[str],
    cached: int,
    *,
    thinking: str | None = None,
    effort: str | None = None,
) -> dict[str, Any]:
    """Return a request with a user message of several blocks.

    Other requests begin with the same system text and with the same first `cached` blocks: the ends
    of these two prefixes are marked for the cache, unless they are too short for it. Writing to the
    cache costs more than sending a text once. `thinking` and `effort` are left out if they are
    None.
    """
    texts = [text for text in said[:cached] if text]  # the API rejects empty blocks
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text} for text in said if text]
    if texts and is_cacheable(model, "".join((system, *texts))):
        blocks[len(texts) - 1] |= CACHED
    first: dict[str, Any] = {"type": "text", "text": system}
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "system": [first | CACHED if is_cacheable(model, system) else first],
        "messages": [{"role": "user", "content": blocks}],
    }
    if thinking is not None:
        body["thinking"] = {"type": thinking}
    if effort is not None:
        body["output_config"] = {"effort": effort}
    return body


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
