"""Any sequence of operations, compared with a dict, on fakeredis and on a real server."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from redis_sessions import Held, Lease, StoreSettings
from redis_sessions.keys import LEASE_GRACE_MS, Keys
from tests.fuzz.texts import amounts

KEYS = st.sampled_from(["a", "b", "ü {x} %", "a\n"])
IDS = st.sampled_from(["ID-1", "ID-2", "ID-3"])


class StoreAgainstDict(RuleBasedStateMachine):
    """`ids` and `owners` are what must be in Redis; `lapsed` are the leases whose time has passed."""

    place = None
    leases = Bundle("leases")

    @initialize()
    def start(self):
        self.namespace = f"test-{uuid.uuid4().hex}"
        self.keys = Keys(self.namespace)
        self.store = self.place.sync(StoreSettings(namespace=self.namespace))
        self.ids, self.owners, self.lapsed = {}, {}, set()

    @rule(key=KEYS, session_id=IDS)
    def set(self, key, session_id):
        self.store.set(key, session_id)
        self.ids[key] = session_id

    @rule(key=KEYS)
    def get(self, key):
        assert self.store.get(key) == self.ids.get(key)

    @rule(key=KEYS, session_id=st.none() | IDS)
    def delete(self, key, session_id):
        expected = key in self.ids and session_id in (None, self.ids[key])
        assert self.store.delete(key, session_id) is expected
        if expected:
            del self.ids[key]

    @rule(key=KEYS)
    def expire(self, key):
        self.place.raw.pexpireat(self.keys.session_id(key), 1)
        self.ids.pop(key, None)

    @rule(key=KEYS)
    def lapse(self, key):
        self.place.raw.pexpire(self.keys.lease(key), LEASE_GRACE_MS)
        if key in self.owners:
            self.lapsed.add(key)

    @rule(key=KEYS, target=leases)
    def acquire(self, key):
        claim = self.store.acquire(key)
        if key in self.owners and key not in self.lapsed:
            assert isinstance(claim, Held)
            assert claim.holder == self.owners[key]
            return Lease(key, claim.holder, self.ids.get(key))
        assert isinstance(claim, Lease)
        assert claim.session_id == self.ids.get(key)
        self._own(claim)
        return claim

    @rule(lease=leases)
    def renew(self, lease):
        assert self.store.renew(lease) is self._owns(lease)
        if self._owns(lease):
            self.lapsed.discard(lease.key)

    @rule(lease=leases, session_id=IDS)
    def save(self, lease, session_id):
        owned = self._owns(lease)
        assert self.store.save(lease, session_id) is owned
        if owned:
            self.ids[lease.key] = session_id
            self._disown(lease)

    @rule(lease=leases)
    def reject(self, lease):
        assert self.store.reject(lease) is self._owns(lease)
        if self._owns(lease):
            self.lapsed.discard(lease.key)
            if lease.session_id is not None and self.ids.get(lease.key) == lease.session_id:
                del self.ids[lease.key]

    @rule(lease=leases)
    def release(self, lease):
        assert self.store.release(lease) is self._owns(lease)
        if self._owns(lease):
            self._disown(lease)

    @invariant()
    def the_report_counts_what_is_there(self):
        if hasattr(self, "store"):
            assert {row.key: row.session_id for row in self.store.sessions()} == self.ids
            report = self.store.report()
            assert (report.live, report.no_ttl, report.over_max_age, report.invalid) == (len(self.ids), 0, 0, 0)

    def teardown(self):
        if hasattr(self, "store"):
            for key in self.place.raw.scan_iter(f"{self.namespace}:*"):
                self.place.raw.delete(key)
            self.store.close()

    def _owns(self, lease):
        return self.owners.get(lease.key) == lease.token

    def _own(self, lease):
        self.owners[lease.key] = lease.token
        self.lapsed.discard(lease.key)

    def _disown(self, lease):
        del self.owners[lease.key]
        self.lapsed.discard(lease.key)


@pytest.mark.parametrize("name", ["fakeredis", "valkey"])
@amounts(15, 300)
def test_any_sequence_of_operations(name, places, amount):
    machine = type("Machine", (StoreAgainstDict,), {"place": places.get(name)})
    few = settings(max_examples=amount, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=few)
