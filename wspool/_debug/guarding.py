"""Whom the page answers: loopback names and addresses, allowed hosts, and none of another site.

Of browsers it trusts only its own pages, since a foreign site can let its own name lead here (DNS
rebinding). This file knows neither server nor pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, NamedTuple

_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::\d*)?", re.ASCII)


class Origin(NamedTuple):
    """What a request says of whom it asks, and on whose behalf.

    `hosts` is whatever names the host: the header first, then others, such as the request line's.
    """

    hosts: tuple[str, ...]
    origin: str | None
    fetch_site: str | None
    fetch_mode: str | None


def checked(allowed_hosts: Iterable[str]) -> frozenset[str]:
    """Return the hosts in their normal form."""
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts is {allowed_hosts!r}; it must be several, as in a list")
    hosts = {given: _host(f"[{given}]" if ":" in given else given) for given in allowed_hosts}
    for given, host in hosts.items():
        if not host and given != "*":
            raise ValueError(
                f"allowed_hosts has {given!r}; use a name as browsers send it, such as "
                "'debug.example.org', an address, both without a port, or '*' for any"
            )
    return frozenset(host or "*" for host in hosts.values())


def refusal(asked: Origin, allowed: frozenset[str]) -> str:
    """Return why a request gets no answer; "" if it gets one."""
    for named in asked.hosts:
        host = _host(named)
        if not ("*" in allowed or host in allowed or _is_loopback(host)):
            return (
                f"The debug page does not answer for the host {named!r}, only for loopback names "
                "and addresses and for those that wspool.debug was given as allowed_hosts."
            )
    is_foreign = asked.origin is not None and asked.origin.partition("://")[2] != asked.hosts[0]
    # A link may lead here from anywhere.
    if is_foreign or (asked.fetch_site == "cross-site" and asked.fetch_mode != "navigate"):
        return "The debug page answers no page of another site."
    return ""


def _host(authority: str) -> str:
    """Return the host of 'host' or 'host:port' in its normal form; "" where there is none."""
    found = _AUTHORITY.fullmatch(authority)
    name = (found[1] or found[2]).lower().removesuffix(".") if found else authority
    try:
        return ip_address(name).compressed
    except ValueError:
        return name if found and found[2] else ""


def _is_loopback(host: str) -> bool:
    """Return whether it is this machine, without asking a name server."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return f".{host}".endswith(".localhost")
