"""Workers on three conversations, stopped, continued and killed at random; their logs are compared with the server's.

MONITOR gives the order of everything: which worker claimed when, and what was really written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from itertools import combinations

import pytest
import redis

from redis_sessions import StoreSettings
from redis_sessions.keys import Keys
from tests.servers import wait_until

WORKERS = 6
CONVERSATIONS = ("a", "b", "c")
LEASE_MS = 400
ROUNDING_S = 0.005


class Chaos:
    """The worker processes, and what is done to them."""

    def __init__(self, stack, arguments, tally):
        self._arguments = [sys.executable, "-m", "tests.faults.worker", *arguments]
        self._tally = tally
        self._all, self._asleep = [], {}
        self.killed_at_s = {}
        stack.callback(self._end)
        self.awake = [self._spawn() for _ in range(WORKERS)]

    def go_on(self, seconds):
        over_at_s = time.monotonic() + seconds
        while time.monotonic() < over_at_s:
            time.sleep(random.uniform(0, 0.1))  # the pace of the chaos: there is nothing to wait for
            now_s = time.monotonic()
            for process in [process for process, wake_at_s in self._asleep.items() if wake_at_s < now_s]:
                self._wake(process)
            if len(self.awake) > 1:
                (self._kill if random.random() < 0.1 else self._stop)(random.choice(self.awake))

    def finish(self):
        """Everybody awake, to the end of the turn."""
        for process in list(self._asleep):
            self._wake(process)
        for process in self.awake:
            process.stdin.close()
        for process in self.awake:
            assert process.wait(60) == 0

    def _spawn(self):
        self._all.append(subprocess.Popen(self._arguments, stdin=subprocess.PIPE))
        return self._all[-1]

    def _stop(self, process):
        os.kill(process.pid, signal.SIGSTOP)
        self.awake.remove(process)
        self._asleep[process] = time.monotonic() + random.uniform(0, 4 * LEASE_MS / 1000)
        self._tally.injected += 1

    def _wake(self, process):
        os.kill(process.pid, signal.SIGCONT)
        del self._asleep[process]
        self.awake.append(process)

    def _kill(self, process):
        process.kill()
        process.wait()
        self.killed_at_s[process.pid] = time.monotonic()
        self.awake.remove(process)
        self.awake.append(self._spawn())
        self._tally.injected += 1

    def _end(self):
        for process in self._all:
            process.kill()
            process.wait()
            process.stdin.close()


class LoggedTurn:
    """A turn as its worker logged it."""

    def __init__(self, events, killed_at_s):
        self.points = {event["point"]: event for event in events}
        self.key = events[0]["key"]
        self.ran = "run" in self.points
        self.killed_at_s = killed_at_s
        self.done = self.points.get("done")
        if self.ran:
            self.began_s = self.points["run"]["at_s"]
            self.ended_s = self.points["end"]["at_s"] if "end" in self.points else killed_at_s
            self.contact_s = max(event.get("contact_s", 0) for event in events)

    def overlaps(self, other):
        return self.ran and other.ran and self.began_s < other.ended_s and other.began_s < self.ended_s


def done_by_server(monitor, keys, end):
    """What the server did: per conversation the claims, as (token, ID then live), and the writes, as (token, ID)."""
    claims = {key: [] for key in CONVERSATIONS}
    writes = {key: [] for key in CONVERSATIONS}
    by_redis_key = {keys.lease(key).decode(): (key, claims) for key in CONVERSATIONS}
    by_redis_key |= {keys.session_id(key).decode(): (key, writes) for key in CONVERSATIONS}
    leases = {keys.lease(key).decode() for key in CONVERSATIONS}
    token = None
    while end not in (words := (said := monitor.next_command())["command"].split(" ")):
        if said["client_type"] != "lua":
            # The first argument of a script that has a lease among its keys: what follows them, as they follow their number.
            first = next((at for at, word in enumerate(words) if word in by_redis_key), None)
            is_script = first is not None and words[first - 1].isdigit() and leases.intersection(words)
            token = next(iter(words[first + int(words[first - 1]) :]), None) if is_script else None
        elif words[0] == "SET":
            key, what = by_redis_key[words[1]]
            if what is writes:
                writes[key].append((token, words[2]))
            else:
                # Of a claim that was repeated, the last one counts: another worker may have had the conversation in between,
                # if this one was stopped before it had looked whether its claim is where the ID is.
                earlier = [claim for claim in claims[key] if claim[0] != words[2]]
                claims[key] = [*earlier, (words[2], writes[key][-1][1] if writes[key] else None)]
    return claims, writes


def read_turns(path, killed_at_s):
    events = {}
    for line in path.read_text().splitlines():
        event = json.loads(line)
        events.setdefault(event["turn"], []).append(event)
    turns = [LoggedTurn(of_turn, killed_at_s.get(int(name.split("-")[0]))) for name, of_turn in events.items()]
    return {turn.points["claimed"]["token"]: turn for turn in turns if "claimed" in turn.points}, events


@pytest.mark.parametrize("name", ["valkey", "redis"])
@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_runs_overlap_only_beyond_the_promise(name, seconds, places, namespace, tmp_path, ledger):
    place, keys = places.get(name), Keys(namespace)
    tally = ledger("workers stopped and killed at random")
    path = tmp_path / "turns"
    settings = StoreSettings(namespace=namespace, lease_ms=LEASE_MS, max_connections=4)
    end = uuid.uuid4().hex
    with ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(place.url))
        monitor = stack.enter_context(client.monitor())
        chaos = Chaos(stack, [place.url, settings.model_dump_json(), ",".join(CONVERSATIONS), str(path)], tally)
        wait_until(lambda: path.exists() and len(path.read_text().splitlines()) > 20, "workers at work", 60)
        chaos.go_on(seconds)
        chaos.finish()
        client.echo(end)
        claims, writes = done_by_server(monitor, keys, end)
    turns, events = read_turns(path, chaos.killed_at_s)
    tally.operations += len(events)
    for of_turn in events.values():
        tally.refused += of_turn[-1]["point"] == "refused"
        tally.untyped += of_turn[-1]["point"] == "untyped"

    for key in CONVERSATIONS:
        written = dict(writes[key])
        assert len(written) == len(writes[key])
        assert place.raw.get(keys.session_id(key)).decode() == writes[key][-1][1]
        told, late = [], set()
        for token, live in claims[key]:
            turn = turns.get(token)
            if turn is None:
                continue  # killed before it knew
            told.append(turn)
            if turn.ran:
                tally.wrong += turn.points["run"]["asked"] != live
            if turn.done:
                tally.lost += turn.done["saved"] and written.get(token) != turn.done["session_id"]
                tally.wrong += not turn.done["saved"] and token in written
            else:
                assert turn.killed_at_s or "refused" in turn.points or "untyped" in turn.points
        for first, second in combinations(told, 2):
            if first.overlaps(second):
                tally.double_runs += second.points["claimed"]["at_s"] < first.contact_s + LEASE_MS / 1000 - ROUNDING_S
                if first.done:
                    assert not first.done["saved"]
                    assert "took the conversation over" in first.done["reason"]
                    assert "took the conversation over" in str(first.done["log"])
                    late.add(first)
        tally.reported += len(late)
    for redis_key in place.raw.scan_iter(f"{namespace}:*"):
        place.raw.delete(redis_key)
    tally.check()
