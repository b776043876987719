"""Where requests go: this machine, or another one that records must not reach without consent."""

from ipaddress import ip_address
from urllib.parse import urlsplit

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
