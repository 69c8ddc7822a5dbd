"""`report --watch` at a real terminal, into a pipe, and while Redis is away."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from redis_sessions import SessionStore, StoreUnavailable
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import report as module
from redis_sessions.cli.report import LiveReport, RecentFailures
from redis_sessions.cli.signals import TO_STOP, until_asked_to_stop
from redis_sessions.server import EmbeddedServer
from tests import test_cli_support
from tests.test_cli_support import run, spawn

hasty, no_variables = test_cli_support.hasty, test_cli_support.no_variables

DEADLINE_S = 30.0


class Screen:
    """A terminal and what it has been told to show, styles left out."""

    def __init__(self, descriptor):
        self.raw = ""
        self._descriptor = descriptor

    def read_until(self, pattern):
        """Read on until something new on the terminal matches."""
        start = len(self.raw)
        give_up_at_s = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw[start:]))):
            assert time.monotonic() < give_up_at_s, self.raw[start:]
            assert self.read(), self.raw
        return found

    def read(self):
        """Read what there is; False at the end."""
        if not select.select([self._descriptor], [], [], DEADLINE_S)[0]:
            return False
        try:
            chunk = os.read(self._descriptor, 65_536)
        except OSError:  # on Linux the end of a terminal is an error
            return False
        self.raw += chunk.decode("utf-8", "replace")
        return bool(chunk)


@contextmanager
def watching(url, *args, rows=60):
    """The watch as a process at a terminal of its own; ended at the end if it still runs."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, 120))
    # These override what the terminal says, and may be set in the environment of the tests.
    size = {"COLUMNS": "120", "LINES": str(rows)}
    environment = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **size}
    process = spawn("report", "--watch", "--url", url, *args, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield process, Screen(ours)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.close(ours)


def ended(process, screen):
    while screen.read():
        pass
    return process.wait(DEADLINE_S)


@pytest.fixture
def server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def store(server):
    with SessionStore.from_url(server.url) as store:
        yield store


def test_it_shows_what_changes_until_a_signal(server, store):
    with watching(server.url, "--every", "1s") as (process, screen):
        screen.read_until(r"live +0")
        store.set("k", "ID-1")
        screen.read_until(r"live +1 +the next expires in 23h 59m")
        for _ in range(2):
            store.increment_resume_failures()
        screen.read_until(r"2 resumes refused in the last \d+s")
        screen.read_until(r"resume failures +2")
        screen.read_until(r"next scan in")
        process.send_signal(signal.SIGINT)
        assert ended(process, screen) == exits.DONE
    assert screen.raw.rstrip().endswith("\x1b[?25h"), "the cursor is there again"
    assert "Traceback" not in screen.raw


def test_it_scans_only_when_due(server, store):
    for number in range(30):
        store.set(f"k{number}", "ID-1")
    with watching(server.url, "--every", "1h") as (process, screen):
        screen.read_until(r"live +30")
        store.increment_resume_failures()
        # The counter is read again, the keys are not.
        screen.read_until(r"1 resume refused in the last \d+s")
        screen.read_until(r"next scan in 59m")
        store.client.ping()
        assert store.client.info("commandstats")["cmdstat_scan"]["calls"] == 1
        process.send_signal(signal.SIGINT)
        assert ended(process, screen) == exits.DONE


@pytest.mark.usefixtures("hasty")
def test_redis_is_away_at_first_and_again(server, store):
    server.stop()
    with watching(server.url, "--every", "1s") as (process, screen):
        screen.read_until(r"127\.0\.0\.1:\d+ can't be reached \(Connection refused\), for \S+; what is shown may be old")
        server.start()
        screen.read_until(r"live +0")
        store.set("k", "ID-1")
        screen.read_until(r"live +1")
        server.kill()
        screen.read_until(r"for \d+s; what is shown may be old")
        server.start()
        screen.read_until(r"next scan in")
        screen.read_until(r"live +0")
        process.send_signal(signal.SIGHUP)
        assert ended(process, screen) == exits.DONE


def test_the_state_comes_first_on_a_low_terminal(server):
    with watching(server.url, rows=4) as (process, screen):
        screen.read_until(r"next scan in \d+s, Ctrl-C ends")
        assert "Counted so far" not in screen.raw
        process.send_signal(signal.SIGINT)
        assert ended(process, screen) == exits.DONE
    assert "Counted so far" in screen.raw, "the last of it stays, and whole"


@pytest.mark.usefixtures("hasty")
def test_a_line_a_scan_for_programs(server, store):
    store.set("k", "ID-1")
    process = spawn("report", "--watch", "--json", "--every", "1s", "--url", server.url)
    try:
        first = json.loads(process.stdout.readline())
        store.increment_resume_failures()
        while not (second := json.loads(process.stdout.readline()))["window_failures"]:
            pass
        server.kill()
        while "error" not in (away := json.loads(process.stdout.readline())):
            pass
        server.start()
        while "error" in (back := json.loads(process.stdout.readline())):
            pass
        process.send_signal(signal.SIGTERM)
        rest, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (exits.DONE, b"")
    assert (first["live"], first["window_ms"], first["window_failures"]) == (1, 0, 0)
    assert list(first)[:4] == ["namespace", "at_ms", "live", "no_ttl"]
    assert (second["counters"]["resume_failures_total"], second["window_failures"]) == (1, 1)
    assert 1_000 <= second["window_ms"] <= 60_000
    assert second["at_ms"] > first["at_ms"]
    assert list(away) == ["namespace", "at_ms", "error"]
    assert "can't be reached" in away["error"]
    assert back["live"] == 0
    assert all(json.loads(line) for line in rest.splitlines())


def test_a_reader_that_stops_early(server):
    process = spawn("report", "--watch", "--json", "--every", "1s", "--url", server.url)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (exits.DONE, b"")


def test_without_a_terminal_the_remedy_is_json(server):
    assert "add --json" in run("report", "--watch", "--url", server.url, code=exits.USAGE).stderr


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "dumb"}, {"TERM": "DUMB"}, {"TERM": "unknown"}, {"TTY_COMPATIBLE": "0"}, {"TTY_INTERACTIVE": "0"}],
    ids=str,
)
def test_a_terminal_without_cursor_control_is_refused(server, environment):
    ours, theirs = pty.openpty()
    streams = {"stdout": theirs, "stderr": subprocess.PIPE, "env": {"TERM": "xterm"} | environment}
    process = spawn("report", "--watch", "--url", server.url, **streams)
    os.close(theirs)
    try:
        _, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert process.returncode == exits.USAGE
    assert b"needs a terminal" in err


def test_a_failed_scan_is_retried_only_when_due(monkeypatch):
    class Store:
        scans, failing = 0, True

        def resume_failures_total(self):
            return 0

        def report(self, _):
            self.scans += 1
            if self.failing:
                raise StoreUnavailable("too much to do")
            return "a report"

    store, clock = Store(), itertools.count()
    watch = LiveReport(store, 60.0)

    def look_at(second):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(second)))
        watch.look(lambda: None)

    for second in itertools.islice(clock, 25):
        look_at(second)
        assert watch.trouble is not None, second
    assert store.scans == 3
    store.failing = False
    for second in itertools.islice(clock, 60):
        look_at(second)
    assert (store.scans, watch.trouble, watch.report) == (4, None, "a report")


def test_failures_are_shown_for_a_minute_and_never_negative():
    failures = RecentFailures()
    assert failures.lately() == (0, 0)
    for at_s, total in ((0, 5), (30, 6), (59, 8), (61, 9), (95, 9)):
        failures.add(at_s, total)
    assert failures.lately() == (1, 36_000)
    failures.add(400, 20)
    assert failures.lately() == (11, 305_000)
    failures.add(401, 0)
    assert failures.lately() == (0, 0)
    failures.add(402, 2)
    assert failures.lately() == (2, 1_000)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_python_ignores_still_stops():
    class Trap:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    before, looks = {number: signal.getsignal(number) for number in TO_STOP}, []
    try:
        with until_asked_to_stop() as signals:
            Trap()
            while True:
                looks.append(signals.stopped_by)
                signals.check()
    finally:
        for number, handler in before.items():  # a program that was stopped ignores them from then on
            signal.signal(number, handler)
    assert looks == [signal.SIGTERM]
