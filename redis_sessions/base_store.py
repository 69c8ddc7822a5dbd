"""What both flavours of the store are made of: a client, settings, and how the wire is to treat the two."""

from __future__ import annotations

from typing import Generic, TypeVar

from redis_sessions import client as clients
from redis_sessions import urls
from redis_sessions.exchange import Link
from redis_sessions.ops import Operations
from redis_sessions.settings import StoreSettings

C = TypeVar("C")


class BaseStore(Generic[C]):
    """A store of either flavour."""

    _awaits: bool

    def __init__(self, client: C, settings: StoreSettings | None, link: Link | None) -> None:
        self.client = client
        self.settings = _checked(settings)
        self._ops = Operations(self.settings)
        self._link = link or clients.callers_link(client, awaits=self._awaits)


def taken_apart(url: str, settings: StoreSettings | None, password: str | None) -> tuple[urls.Target, StoreSettings]:
    """What `from_url` was given, checked. Raises InvalidSettings, and TypeError for settings that are none."""
    checked = _checked(settings)
    return urls.parse(url, password), checked


def _checked(settings: StoreSettings | None) -> StoreSettings:
    if not isinstance(settings, StoreSettings | None):
        raise TypeError(f"settings are a StoreSettings, not a {type(settings).__name__}: write StoreSettings(namespace=…)")
    return StoreSettings() if settings is None else settings
