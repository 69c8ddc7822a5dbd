from __future__ import annotations

import pytest
import redis

from redis_sessions import SessionStore, StoreSettings
from tests.resend.losses import PATIENT, LosingClient


@pytest.fixture
def client(valkey):
    client = LosingClient(redis.Redis.from_url(valkey.url))
    yield client
    client._client.close()


@pytest.fixture
def store(client, namespace, valkey):
    yield SessionStore(client, StoreSettings(namespace=namespace), _link=PATIENT)
    for key in valkey.raw.scan_iter(f"{namespace}:*"):
        valkey.raw.delete(key)
