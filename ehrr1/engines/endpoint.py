"""Endpoints: which may receive records, what their errors mean, and what to tell the user."""

import os
import socket
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
    """Return whether the host of `url` is this machine.

    It is if its name resolves, and to loopback addresses only. A name that resolves to an address
    of the network is another machine, even where it is this one's own: what is sent there passes
    the rules of the network.
    """
    try:
        host = urlsplit(url).hostname
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
        addresses = [ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
    except (OSError, ValueError):  # no address, or none of such a name
        return False
    return bool(addresses) and all(address.is_loopback for address in addresses)


def may_receive(url: str | None, *, open_data: bool, compliant: bool) -> bool:
    """Return whether an endpoint may receive records: the one rule for all that send any.

    It may if the records are open, if the user says that the agreement covers it
    (`compliant_endpoint`), or if it is this machine. `url` is None for a third party, which
    receives the records even where a gateway on this machine is asked.
    """
    return open_data or compliant or (url is not None and is_local(url))


def check_url(group: str, name: str, url: str, *, open_data: bool, compliant: bool) -> None:
    """Raise UserError, before anything is sent, if the server at `url` must not receive records.

    `group` and `name` are the choice that names the server (`engine=server`); `open_data` and
    `compliant` as in `may_receive`.
    """
    if not may_receive(url, open_data=open_data, compliant=compliant):
        raise UserError(
            f"{group}={name}: the records are closed, and {group}.url={url} is another machine: "
            "records would leave this one, which the data use agreement of credentialed records "
            "may forbid; use a server on this machine (http://127.0.0.1:PORT), or set "
            f"{group}.compliant_endpoint=true if your agreement covers it"
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
    url: str | None = None,
) -> None:
    """Raise UserError, before anything is sent, if records must not or cannot be sent.

    `open_data`: whether the prepared records are open (`runs.data_is_open`). `group` is the group
    of `settings`; `here` names the alternative on this machine. `url` is where the endpoint is, as
    in `may_receive`; on this machine it needs no key.
    """
    local = url is not None and is_local(url)
    problems = []
    if not may_receive(url, open_data=open_data, compliant=settings.compliant_endpoint):
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
