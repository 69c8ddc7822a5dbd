"""The operations on one conversation or on the counter, with what may be true after a fault."""

from __future__ import annotations

from redis_sessions import Held, Lease
from redis_sessions.keys import LEASE_GRACE_MS, RESUME_FAILURES
from tests.faults.case import SLACK_MS, Case


class Get(Case):
    def act(self):
        return self.store.get(self.key)

    def answered(self, reply):
        self.says(reply, self.old)
        self.holds(self.old)

    def refused(self, error):
        self.holds(self.old)


class GetAbsent(Case):
    def prepare(self):
        pass

    def act(self):
        return self.store.get(self.key)

    def answered(self, reply):
        self.says(reply, None)

    def refused(self, error):
        self.holds(None)


class PeekIt(Case):
    def act(self):
        return self.store.peek(self.key)

    def answered(self, reply):
        self.says(reply.session_id, self.old)
        left_ms = self.settings.session_max_age_ms - reply.expires_in_ms
        if not 0 <= left_ms <= SLACK_MS:
            self.wrong(f"expires in {reply.expires_in_ms}")

    def refused(self, error):
        self.holds(self.old)


class Set(Case):
    def prepare(self):
        self.plant()
        self.raw.pexpire(self.id_key, self.settings.session_max_age_ms)

    def act(self):
        return self.store.set(self.key, self.new)

    def answered(self, reply):
        self.holds(self.new)

    def refused(self, error):
        self.holds(self.old, self.new)


class Delete(Case):
    def act(self):
        return self.store.delete(self.key)

    def answered(self, reply):
        self.says(reply, True, False)
        self.holds(None)

    def refused(self, error):
        self.holds(self.old, None)


class DeleteThatID(Delete):
    def act(self):
        return self.store.delete(self.key, self.old)


class DeleteAnotherID(Case):
    def act(self):
        return self.store.delete(self.key, self.new)

    def answered(self, reply):
        self.says(reply, False)
        self.holds(self.old)

    def refused(self, error):
        self.holds(self.old)


class Acquire(Case):
    def act(self):
        return self.store.acquire(self.key)

    def answered(self, reply):
        if not isinstance(reply, Lease):
            self.wrong(f"nobody had it, yet {reply}")
            return
        self.says(reply.session_id, self.old)
        self.leased(reply.token)
        self.holds(self.old)

    def refused(self, error):
        self.holds(self.old)


class AcquireHeld(Case):
    def prepare(self):
        self.plant()
        self.lease()

    def act(self):
        return self.store.acquire(self.key)

    def answered(self, reply):
        if not (isinstance(reply, Held) and reply.holder == self.mine.token):
            self.wrong(f"held by {self.mine.token}, yet {reply}")
        self.refused(None)

    def refused(self, error):
        self.holds(self.old)
        self.leased(self.mine.token)


class Renew(AcquireHeld):
    def prepare(self):
        super().prepare()
        self.raw.pexpire(self.lease_key, LEASE_GRACE_MS + SLACK_MS)

    def act(self):
        return self.store.renew(self.mine)

    def answered(self, reply):
        self.says(reply, True)
        self.leased(self.mine.token)

    def refused(self, error):
        self.says(self.raw.get(self.lease_key), self.mine.token.encode())


class Save(AcquireHeld):
    def act(self):
        return self.store.save(self.mine, self.new)

    def answered(self, reply):
        self.says(reply, True)
        self.holds(self.new)
        self.leased(None)

    def refused(self, error):
        self.holds(self.old, self.new)
        self.leased(None if self.raw.get(self.id_key) == self.new.encode() else self.mine.token)


class Reject(AcquireHeld):
    def act(self):
        return self.store.reject(self.mine)

    def answered(self, reply):
        self.says(reply, True)
        self.holds(None)
        self.leased(self.mine.token)

    def refused(self, error):
        self.holds(self.old, None)
        self.leased(self.mine.token)


class Release(AcquireHeld):
    def act(self):
        return self.store.release(self.mine)

    def answered(self, reply):
        self.says(reply, True, False)
        self.holds(self.old)
        self.leased(None)

    def refused(self, error):
        self.holds(self.old)
        self.leased(self.mine.token, None)


class BreakLease(AcquireHeld):
    def act(self):
        return self.store.break_lease(self.key)

    def answered(self, reply):
        # A reply to what was sent once more: the holder is known from the first round trip.
        self.says(reply.holder, self.mine.token)
        self.holds(self.old)
        self.says((self.direct.renew(self.mine), self.direct.save(self.mine, self.new)), (False, False))
        self.says(type(self.direct.acquire(self.key)), Lease)

    def refused(self, error):
        self.holds(self.old)
        if self.raw.get(self.lease_key) != self.mine.token.encode():
            self.answered(Held(self.key, self.mine.token, 0))


class _TakenOver(Case):
    def prepare(self):
        self.plant()
        self.lease()
        self.lapse_and_take()

    def answered(self, reply):
        self.says(reply, False)
        self.refused(None)

    def refused(self, error):
        self.holds(self.old)
        self.leased(self.successor.token)


class RenewTaken(_TakenOver):
    def act(self):
        return self.store.renew(self.mine)


class SaveTaken(_TakenOver):
    def act(self):
        return self.store.save(self.mine, self.new)


class SaveBroken(SaveTaken):
    def lapse_and_take(self):
        self.direct.break_lease(self.key)
        self.successor = self.direct.acquire(self.key)


class RejectTaken(_TakenOver):
    def act(self):
        return self.store.reject(self.mine)


class ReleaseTaken(_TakenOver):
    def act(self):
        return self.store.release(self.mine)


class Increment(Case):
    rides_out = False

    def prepare(self):
        self.before = self.counts()

    def act(self):
        return self.store.increment_resume_failures()

    def answered(self, reply):
        self.says(reply, self.before[RESUME_FAILURES] + 1)
        self.moved(self.before, **{RESUME_FAILURES: (1,)})

    def refused(self, error):
        self.moved(self.before, **{RESUME_FAILURES: (0, 1)})


class Total(Case):
    def act(self):
        return self.store.resume_failures_total()

    def answered(self, reply):
        self.says(reply, self.counts()[RESUME_FAILURES])

    def refused(self, error):
        pass


STEPS = (
    Get, GetAbsent, PeekIt, Set, Delete, DeleteThatID, DeleteAnotherID, Acquire, AcquireHeld, Renew, RenewTaken,
    Save, SaveTaken, SaveBroken, Reject, RejectTaken, Release, ReleaseTaken, BreakLease, Increment, Total,
)  # fmt: skip
