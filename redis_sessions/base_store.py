"""What both flavours of the store are made of: a client, settings, and how the wire is to treat the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeAlias, TypeVar

from redis_sessions import client as clients
from redis_sessions import urls
from redis_sessions.exchange import Link
from redis_sessions.ops import Operations
from redis_sessions.settings import StoreSettings

C = TypeVar("C")
Connect: TypeAlias = Callable[[urls.Target, StoreSettings], C]


class BaseStore(Generic[C]):
    """A store of either flavour."""

    _awaits: bool

    def __init__(self, client: C, settings: StoreSettings | None = None, *, _link: Link | None = None) -> None:
        """A store over a redis-py client of your own: its retries apply, to counters too, and what is risky in it is logged.

        Args:
            client: redis.Redis or redis.RedisCluster; for AsyncSessionStore those of redis.asyncio.
            settings: how the store behaves; StoreSettings() unless told.

        Raises TypeError for anything else. `from_url` builds a client that is safe.
        """
        self.client = client
        self.settings = _checked(settings)
        self._ops = Operations(self.settings)
        self._link = _link or clients.callers_link(client, awaits=self._awaits)

    @classmethod
    def _over(
        cls,
        connect: Callable[[urls.Target, StoreSettings], C],
        url: str,
        settings: StoreSettings | None,
        password: str | None,
    ) -> Self:
        settings = _checked(settings)
        target = urls.parse(url, password)
        return cls(connect(target, settings), settings, _link=clients.link(target, settings))


def _checked(settings: StoreSettings | None) -> StoreSettings:
    if not isinstance(settings, StoreSettings | None):
        raise TypeError(f"settings are a StoreSettings, not a {type(settings).__name__}: write StoreSettings(namespace=…)")
    return StoreSettings() if settings is None else settings
