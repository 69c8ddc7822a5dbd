"""The operations of many round trips: scans, import, export, and `resume`."""

from __future__ import annotations

import json
import time
from typing import ClassVar

from redis_sessions import Place, Turn
from redis_sessions.keys import FRESH_STARTS, GAVE_UP, RESUME_FAILURES, RESUMES, ROTATIONS
from tests.faults.case import Case


class Report(Case):
    def prepare(self):
        self.before = self.counts()

    def act(self):
        return self.store.report()

    def answered(self, reply):
        self.says((reply.live, reply.no_ttl, reply.over_max_age, reply.invalid), (len(self.standing), 0, 0, 0))
        self.says(sum(bucket.count for bucket in reply.idle_histogram), len(self.standing))
        self.says(reply.counters, self.before)
        self.says(reply.approximate, False, True)

    def refused(self, error):
        pass


class Sessions(Report):
    def act(self):
        return {row.key: row.session_id for row in self.store.sessions()}

    def answered(self, reply):
        self.says(reply, self.standing)


class LiveSessionIDs(Report):
    def act(self):
        return self.store.live_session_ids()

    def answered(self, reply):
        self.says(reply, frozenset(self.standing.values()))


class Export(Report):
    def prepare(self):
        self.path = self.directory / f"{self.key}.json"
        self.path.write_text("{}")

    def act(self):
        return self.store.export(self.path)

    def answered(self, reply):
        self.says((reply.exported, reply.not_timed, reply.skipped), (len(self.standing), 0, 0))
        found = {key: record["id"] for key, record in json.loads(self.path.read_text()).items()}
        self.says(found, self.standing)

    def refused(self, error):
        self.says(self.path.read_text(), "{}")


class Import(Case):
    """Two batches: three to import, one live already, one expired, one rejected."""

    def prepare(self):
        self.plant()
        used_at_ms = int(time.time() * 1000) - 1_000
        due = {f"{self.key}-{name}": f"{self.new}-{name}" for name in "abc"}
        entries = {key: {"id": session_id, "last_used_at": used_at_ms} for key, session_id in due.items()}
        entries |= {self.key: {"id": self.new, "last_used_at": used_at_ms}, f"{self.key}-d": "EXPIRED", f"{self.key}-e": 1}
        self.due = due
        self.path = self.directory / f"{self.key}.json"
        self.path.write_text(json.dumps(entries))

    def act(self):
        return self.store.import_legacy(self.path)

    def clean(self):
        super().clean()
        self.raw.delete(*map(self.keys.session_id, self.due))

    def answered(self, reply):
        self.says((reply.total, reply.imported, reply.expired, reply.kept, reply.rejected), (6, 3, 1, 1, 1))
        self.holds(self.old)
        for key, session_id in self.due.items():
            self.holds(session_id, key=key)

    def refused(self, error):
        self.holds(self.old)
        for key, session_id in self.due.items():
            self.holds(session_id, None, key=key)


class _Resume(Case):
    """A turn. `asked` is what the agent was started on; it gives `new`, and the key as its value."""

    rides_out = False
    how = "resumed"
    # What the record of `old` has, and how many turns that of `new` has afterwards.
    record: ClassVar[dict[str, int | str]] = {}
    turns = 1

    def prepare(self):
        super().prepare()
        if self.record:
            self.raw.hset(self.record_key, mapping={"id": self.old, **self.record})
        self.before, self.asked = self.counts(), []

    def run(self, session_id):
        self.asked.append(session_id)
        return Turn(self.new, self.key)

    def act(self):
        return self.store.resume(self.key, self.run)

    def runs(self, reply):
        """What it was started on is the flow's only choice, unless it says that the store was away."""
        right = {"resumed": [self.old], "restarted": [self.old, None]}.get(reply.how, [None])
        self.says(self.asked, right)
        if reply.how != self.how and "store unavailable" not in (reply.reason or ""):
            self.wrong(f"{reply.how}, not {self.how}: {reply.reason}")

    def answered(self, reply):
        self.runs(reply)
        self.says((reply.value, reply.session_id), (self.key, self.new))
        if reply.saved:
            self.holds(self.new)
            self.leased(None)
            # A turn that ran without a lease, since the store was away, knows nothing of the session before.
            self.recorded(self.new, self.turns if reply.how == self.how else 1)
        else:
            if "not saved" not in (reply.reason or ""):
                self.wrong(f"not saved, yet no word of it: {reply.reason}")
            self.holds(self.old, self.new, None)
        self.moved(self.before, **self.counted)

    def refused(self, error):
        self.wrong(f"an outage must stop no turn: {error}")


class ResumeLive(_Resume):
    how, counted = "resumed", {RESUMES: (0, 1), FRESH_STARTS: (0, 1)}


class ResumeAgain(_Resume):
    how, counted, turns = "resumed", {RESUMES: (0, 1), FRESH_STARTS: (0, 1)}, 4
    record: ClassVar = {"t": 3, "w": "\0build-7\0/home/me"}


class ResumeAfterASet(_Resume):
    """A record of another session, which a plain SET has replaced, is not read: it would rotate, and give up."""

    how, counted = "resumed", {RESUMES: (0, 1), FRESH_STARTS: (0, 1)}
    record: ClassVar = {"id": "ANOTHER", "t": 3_000, "f": 9}


class ResumeRotated(_Resume):
    how, counted = "rotated", {ROTATIONS: (0, 1), FRESH_STARTS: (0, 1)}
    record: ClassVar = {"t": 1_000}


class ResumeGivenUp(_Resume):
    how, counted = "gave_up", {GAVE_UP: (0, 1), FRESH_STARTS: (0, 1)}
    record: ClassVar = {"t": 3, "f": 3}


class ResumeFresh(_Resume):
    how, counted = "fresh", {FRESH_STARTS: (0, 1)}

    def plant(self):
        pass


class ResumeRefused(_Resume):
    how, counted = "restarted", {RESUME_FAILURES: (0, 1), FRESH_STARTS: (0, 1)}

    def run(self, session_id):
        turn = super().run(session_id)
        if session_id is not None:
            raise RuntimeError("No conversation found")
        return turn


class ResumeMoved(ResumeRefused):
    counted: ClassVar = {FRESH_STARTS: (0, 1)}
    record: ClassVar = {"w": "\0build-7\0/home/me"}

    def act(self):
        return self.store.resume(self.key, self.run, place=Place("build-8", "/home/me"))

    def answered(self, reply):
        super().answered(reply)
        self.says(reply.moved, reply.how == "restarted")


class ResumeFailed(_Resume):
    """The agent fails for its own reasons: nothing is saved or counted, and the lease is released."""

    def run(self, session_id):
        super().run(session_id)
        raise ZeroDivisionError

    def act(self):
        try:
            return super().act()
        except ZeroDivisionError:
            return None

    def answered(self, reply):
        self.says(reply, None)
        self.says(self.asked, [self.old], [None])
        self.holds(self.old)
        self.moved(self.before)


class ResumeOrRaise(_Resume):
    """With `on_outage="raise"` the agent isn't started when the store is away."""

    how, counted = "resumed", {RESUMES: (0, 1)}

    def act(self):
        return self.store.resume(self.key, self.run, on_outage="raise")

    def refused(self, error):
        self.says(self.asked, [])
        self.holds(self.old)


class ResumeUnleased(_Resume):
    how, counted = "resumed", {RESUMES: (0, 1), FRESH_STARTS: (0, 1)}

    def act(self):
        return self.store.resume(self.key, self.run, lease=False)

    def recorded(self, session_id, turns):
        self.says(self.raw.exists(self.record_key), 0)


WHOLES = (
    Report, Sessions, LiveSessionIDs, Export, Import, ResumeLive, ResumeFresh, ResumeRefused, ResumeFailed, ResumeOrRaise,
    ResumeUnleased, ResumeAgain, ResumeAfterASet, ResumeRotated, ResumeGivenUp, ResumeMoved,
)  # fmt: skip
