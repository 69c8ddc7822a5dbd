"""`run` as a process among others: two at once, signals, kill -9, time limits, and a terminal."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from redis_sessions.agents import CLAUDE as RUNTIME
from redis_sessions.cli import child
from redis_sessions.cli.child import Child, Signals
from redis_sessions.cli.gate import Gate
from redis_sessions.recognise import Watch
from tests import test_cli_support
from tests.run_stage import CLAUDE, KEY, REFUSED, SAID, TURN, E, R, Stage, resumed, staged
from tests.servers import wait_until
from tests.test_cli_support import Cli

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

HANG = [["tell", "ready"], ["pause"]]
FAMILY = [["child", HANG], *HANG]
DAYS_30_MS = 30 * 86_400_000


@pytest.fixture
def stage(tmp_path: Path, cli: Cli) -> Iterator[Stage]:
    with staged(tmp_path, cli) as stage:
        yield stage


def has_asked_in_vain(stage: Stage) -> None:
    """Wait until somebody asks for a conversation that another one runs."""
    with stage.cli.raw.monitor() as monitor:
        for command in monitor.listen():
            if "EVALSHA" in command["command"].upper() and stage.cli.namespace in command["command"]:
                return


# -- two at once


def test_the_second_of_two_ends_at_once_and_names_the_first(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    first = stage.start()
    stage.hear("ready")
    second = stage.run("--result", str(stage.result_file))
    assert (second.code, second.out) == (75, b"")
    [said] = second.said
    assert f"is leased by {socket.gethostname()}:{first.pid}:" in said
    assert (stage.result["how"], stage.result["saved"], stage.result["exit_code"]) == (None, False, 75)
    assert "is leased by" in stage.result["reason"]
    assert stage.leased()
    stage.go("go")
    assert stage.finish(first).code == 0
    assert stage.starts == [CLAUDE]
    assert stage.counters == (0, 1, 0)
    assert not stage.leased()


def test_of_two_at_once_one_runs(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    both = [stage.start(), stage.start()]
    stage.hear("ready")
    wait_until(lambda: any(process.poll() is not None for process in both), "the end of the one that came second")
    stage.go("go")
    assert sorted(stage.finish(process).code for process in both) == [0, 75]
    assert stage.starts == [CLAUDE]
    assert stage.saved(E)


def test_the_second_of_two_waits_and_resumes_what_the_first_began(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID], resumed=SAID)
    first = stage.start()
    stage.hear("ready")
    second = stage.start("--wait", "30s")
    has_asked_in_vain(stage)
    assert len(stage.starts) == 1
    stage.go("go")
    assert stage.finish(first).code == 0
    done = stage.finish(second)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
    assert stage.starts == [CLAUDE, resumed("claude", E)]
    assert stage.counters == (1, 1, 0)


SHORT_LEASE = """
from redis_sessions.cli import main, options
settings = options.Options.settings
options.Options.settings = lambda self: settings(self).model_copy(update={"lease_ms": 600})
main()
"""


def test_the_lease_is_renewed_while_the_run_lasts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", SHORT_LEASE])
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    process = stage.start()
    stage.hear("ready")
    lease = stage.cli.keys.lease(KEY)
    for _ in range(3):
        stage.cli.raw.pexpire(lease, DAYS_30_MS + 10_000)
        wait_until(lambda: DAYS_30_MS < stage.cli.raw.pttl(lease) <= DAYS_30_MS + 600, "a renewal")
    assert stage.run().code == 75
    stage.go("go")
    assert stage.finish(process).code == 0


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_reaches_the_whole_group(stage: Stage, number: signal.Signals) -> None:
    stage.plant()
    stage.script(resumed=[["out", "half"], *FAMILY])
    process = stage.start("--result", str(stage.result_file))
    for _ in range(2):
        stage.hear("ready")
    process.send_signal(number)
    done = stage.finish(process)
    assert (done.code, done.out, done.err) == (128 + number, b"half", b"")
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()
    assert stage.counters == (0, 0, 0)
    assert stage.result["exit_code"] == 128 + number
    assert stage.result["previous"] == R


@pytest.mark.parametrize("code", [0, 7])
def test_an_agent_that_handles_a_signal_has_the_last_word(stage: Stage, code: int) -> None:
    stage.script(fresh=[["on", "SIGTERM", [*SAID, ["exit", code]]], *HANG])
    process = stage.start()
    stage.hear("ready")
    process.terminate()
    done = stage.finish(process)
    assert (done.code, done.out) == (code, TURN.encode())
    assert stage.stored() == (E if code == 0 else None)
    assert not stage.leased()


def test_signals_that_stop_nobody_are_passed_on_too(stage: Stage) -> None:
    stage.script(fresh=[["on", "SIGUSR1", [["tell", "one"]]], ["on", "SIGUSR2", [["exit", 5]]], *HANG])
    process = stage.start()
    stage.hear("ready")
    process.send_signal(signal.SIGUSR1)
    stage.hear("one")
    process.send_signal(signal.SIGUSR2)
    assert stage.finish(process).code == 5


def test_a_signal_that_is_ignored_stays_ignored(stage: Stage) -> None:
    """As nohup has it."""
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    words = [*test_cli_support.PROGRAM, *stage.arguments()]
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words],
        env={**os.environ, **stage.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stage._started.append(process)
    agent = stage.hear("ready")["pid"]
    process.send_signal(signal.SIGHUP)
    os.kill(agent, signal.SIGHUP)
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out) == (0, TURN.encode())


def test_no_second_run_after_a_signal(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["on", "SIGTERM", REFUSED], *HANG])
    process = stage.start("--result", str(stage.result_file))
    stage.hear("ready")
    process.terminate()
    assert stage.finish(process).code == 143
    assert len(stage.starts) == 1
    assert not stage.leased()
    assert stage.result["exit_code"] == 143


def test_a_signal_while_it_waits_for_the_lease(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    first = stage.start()
    stage.hear("ready")
    second = stage.start("--wait", "1h")
    has_asked_in_vain(stage)
    second.terminate()
    assert stage.finish(second).code == 143
    stage.go("go")
    assert stage.finish(first).code == 0
    assert len(stage.starts) == 1


def test_a_signal_between_the_fork_and_the_watch_is_not_lost() -> None:
    signals = Signals()
    process = subprocess.Popen(["/bin/sleep", "60"], process_group=0)
    with signals.installed():
        with signals.starting() as to:
            signal.raise_signal(signal.SIGTERM)
            assert process.poll() is None
            to(process.pid)
            assert process.wait(timeout=10) == -signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # what the turn gave is still to be saved
        with pytest.raises(child.Stopped) as stopped:
            signals.check()
    assert stopped.value.exit_code == 143


def test_the_agent_is_killed(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["err", "No conversation at all\n"], *HANG])
    process = stage.start()
    os.kill(stage.hear("ready")["pid"], signal.SIGKILL)
    done = stage.finish(process)
    assert (done.code, done.out, done.err) == (137, b"", b"No conversation at all\n")
    assert stage.kept()
    assert not stage.leased()


def test_the_wrapper_is_killed(stage: Stage) -> None:
    """The agent's group ends by itself, the lease lapses by itself, and the next one gets it."""
    stage.plant()
    stage.script(resumed=FAMILY)
    process = stage.start()
    for _ in range(2):
        stage.hear("ready")
    process.kill()
    assert stage.all_gone(within_s=4.0)
    assert stage.finish(process).code == -signal.SIGKILL
    assert stage.kept()
    lease = stage.cli.keys.lease(KEY)
    assert DAYS_30_MS < stage.cli.raw.pttl(lease) <= DAYS_30_MS + 30_000
    assert stage.run().code == 75
    stage.cli.raw.pexpire(lease, DAYS_30_MS + 200)
    stage.script(resumed=SAID)
    done = stage.run("--wait", "30s")
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.saved(E)


SHORT_GRACE = """
from redis_sessions.cli import group, main
group.LEADER = group.LEADER.replace("sleep 5", "sleep 1")
main()
"""


def test_the_wrapper_is_killed_and_the_agent_would_not_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", SHORT_GRACE])
    stage.script(fresh=[["on", "SIGTERM", [["tell", "term"]]], *HANG])
    process = stage.start()
    stage.hear("ready")
    process.kill()
    stage.hear("term")
    assert stage.all_gone(within_s=4.0)


# -- time limits


def test_an_agent_that_hangs(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["err", "working\n"], *FAMILY])
    done = stage.run("--timeout", "1s", "--verbose", "--result", str(stage.result_file))
    assert (done.code, done.out) == (124, b"")
    assert done.err == b"working\nredis-sessions: the agent ran out of time (other)\n"
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()
    assert stage.counters == (0, 0, 0)
    assert stage.result["exit_code"] == 124


def test_a_refusal_on_the_way_out_of_time_is_none(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["on", "SIGTERM", REFUSED], *HANG])
    assert stage.run("--timeout", "1s").code == 124
    assert len(stage.starts) == 1
    assert stage.kept()


def test_an_agent_that_hangs_and_would_not_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TERMINATED_AFTER_S", 0.2)
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    deaf = [["on", "SIGTERM", [["tell", "term"]]], *HANG]
    stage.script(fresh=[["child", deaf], *deaf])
    run = Child(
        command=[str(stage.binaries / "claude")],
        environment=dict(os.environ),
        spool=None,
        watch=Watch(RUNTIME),
        gate=Gate(hold=False),
        signals=Signals(),
        deadline_s=time.monotonic() + 1.0,
    )
    assert run.run() == (-signal.SIGKILL, True)
    assert len(stage.told("term")) == 2
    assert stage.all_gone()


# -- a terminal


class Screen:
    """A terminal that `run` is started on, as the leader of its session."""

    def __init__(self, stage: Stage, *options: str) -> None:
        self.ours, theirs = pty.openpty()
        words = [*test_cli_support.PROGRAM, *stage.arguments(*options)]
        # Opening it again makes it the controlling terminal of the new session.
        program = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**os.environ, **stage.environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        stage._started.append(self.process)
        self.shown = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.ours, 65_536)
            except OSError:  # on Linux the end of a terminal is an error
                return
            if not piece:
                return
            self.shown += piece

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=20)
        self.reader.join(timeout=10)
        os.close(self.ours)
        return code, self.shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("planted", [False, True])
def test_an_agent_reads_from_the_terminal(stage: Stage, *, planted: bool) -> None:
    if planted:
        stage.plant()
    stage.script(resumed=REFUSED, fresh=[["line"], *SAID])
    screen = Screen(stage)
    while len(stage.told("start")) < 1 + planted:
        stage.hear("start")
    os.write(screen.ours, b"yes\n")
    assert stage.hear("read")["size"] == 4
    code, shown = screen.end()
    assert (code, shown) == (0, f"yes\n{TURN}")
    assert stage.saved(E)


def test_ctrl_c_at_a_terminal(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=FAMILY)
    screen = Screen(stage)
    for _ in range(2):
        stage.hear("ready")
    # The wrapper gives the terminal away once the agent runs.
    wait_until(lambda: os.tcgetpgrp(screen.ours) != screen.process.pid, "the agent in the foreground")
    os.write(screen.ours, termios.tcgetattr(screen.ours)[6][termios.VINTR])
    code, shown = screen.end()
    assert code == 130
    assert shown == "^C"
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()


def test_a_terminal_that_is_not_its_own(stage: Stage) -> None:
    """As a supervisor may give it: without job control."""
    stage.script()
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        stack.callback(os.close, theirs)
        done = stage.run(stdin=theirs)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
