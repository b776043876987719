"""Endpoints: which may receive records, what their errors mean, and what to tell the user."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from urllib.parse import urlsplit

from ehrr1.config.writers import AnthropicEngineConfig, EndpointChains
from ehrr1.errors import UserError

OUTAGE = 20
"""Consecutive requests without an answer, after all retries, that end the run."""

WRITE_HERE = "write on this machine (chains=vllm or chains=transformers)"

NO_KEY = "none"
"""Sent to servers that need no key; the SDK always sends one."""


def is_local(url: str) -> bool:
    """Return whether the host of `url` is this machine: localhost or a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def refusal(group: str, name: str, url: str) -> str:
    """Return the message that refuses to send closed records to another machine."""
    return (
        f"{group}={name}: the prepared records are closed, and {group}.url={url} is another "
        "machine: records would leave this one, which the data use agreement of credentialed "
        f"records may forbid; use a server on this machine, or set {group}.compliant_endpoint=true "
        "if your agreement covers it"
    )


class MalformedError(ValueError):
    """A response that cannot be read."""


@dataclass(frozen=True)
class Api:
    """An API of a third party.

    `name` chooses it and is also the name of its SDK; `key` is the environment variable with its
    key. `limits` names, by group of settings, what else than the model and the prompt's length the
    API may refuse.
    """

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
    """Raise UserError, before anything is sent, if records must not or cannot be sent.

    `open_data`: whether the prepared records are open (`runs.data_is_open`). `group` is the group
    of `settings`; `here` names the alternative on this machine. `local`: the endpoint is this
    machine, so that records do not leave it and no key is needed.
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
    """Return whether a request refused with this HTTP status may succeed later."""
    return status in (408, 409, 429) or status >= 500


def refused(api: Api, status: int, message: str, group: str = "chains") -> UserError:
    """Return the error for a request that the endpoint refuses for good."""
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
    """Return the error for an endpoint that does not answer."""
    return UserError(
        f"{group}={api.name}: the endpoint does not answer ({reason}); check {group}.base_url and "
        "the network. What was written is saved: the same command goes on"
    )
