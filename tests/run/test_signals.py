"""Signals to `run`, its agent, or both: they are passed on, nothing is left running or leased, and no ID is lost."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from redis_sessions.cli.run import descendants
from redis_sessions.cli.signals import PASSED_ON, Signals, Stopped, send
from redis_sessions.keys import LEASE_GRACE_MS
from tests.run.stage import CLAUDE, DEADLINE_S, FAMILY, HANG, KEY, REFUSED, SAID, TURN, E, R, Stage


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGHUP,
        *(pytest.param(each, marks=pytest.mark.long) for each in (signal.SIGINT, signal.SIGQUIT)),
    ],
)
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


BEHIND = {
    "timeout": ["timeout", "{resume}", "60", *CLAUDE],
    "setsid": ["setsid", "{resume}", "-w", *CLAUDE],
    "script": ["script", "{resume}", "-qefc", shlex.join(CLAUDE), "/dev/null"],
}


@pytest.mark.parametrize("starter", BEHIND)
@pytest.mark.parametrize("how", ["signal", "time limit", "kill"])
def test_an_agent_in_a_group_of_its_own_is_reached(
    stage: Stage, time_is_over: Callable[[], None], starter: str, how: str
) -> None:
    """With what it has started, in whatever session that is, and whether or not it has a parent left."""
    if shutil.which(starter) is None:
        pytest.skip(f"there is no {starter} here")
    stage.script(fresh=[["orphan", HANG], *FAMILY])
    process = stage.start("--agent", "claude", "--timeout", "30m", command=BEHIND[starter])
    for _ in range(3):
        stage.hear("ready")
    if how == "signal":
        process.terminate()
    elif how == "kill":
        process.kill()
    else:
        time_is_over()
    assert stage.all_gone()
    assert stage.finish(process).code == {"signal": 143, "time limit": 124, "kill": -signal.SIGKILL}[how]
    assert stage.leased() is (how == "kill")


TOOL = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told "))
os.write(1, b"ready ")
sys.stdin.read()
"""


class UntilReparented(descendants.Family):
    """Looks again only when the tool was told, and its parent is gone."""

    def __init__(self, tool: subprocess.Popen[bytes], token: str) -> None:
        # A group of its own that is empty: all of its processes are in others.
        super().__init__(_ended_group(), token)
        self.tool, self.looks = tool, 0

    def look(self) -> list[descendants.Process]:
        self.looks += 1
        if self.looks == 2:
            assert self.tool.stdout is not None
            assert self.tool.stdout.read(5) == b"told "
            self.tool.wait(timeout=DEADLINE_S)
        return super().look()


def _ended_group() -> int:
    with subprocess.Popen(["/bin/sh", "-c", ":"], process_group=0) as leader:
        return leader.pid


def test_a_tool_whose_parent_ends_first_is_told_once() -> None:
    """To some, as terraform and docker compose, a second signal means to stop at once."""
    started = subprocess.Popen(
        ["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- & exec 3<&-; wait', "sh", sys.executable, "-ISc", TOOL],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={descendants.VARIABLE: "a token"},
    )
    assert started.stdout is not None
    assert started.stdout.read(6) == b"ready "
    family = UntilReparented(started, "a token")
    family.send(signal.SIGTERM)
    # The end of its input ends the tool.
    assert started.communicate(timeout=DEADLINE_S) == (b"", None)


def test_what_an_agent_leaves_after_a_normal_end_is_left_alone(stage: Stage) -> None:
    stage.script(fresh=[["orphan", [["tell", "ready"], ["await", "go"], ["tell", "still here"]]], *SAID])
    assert stage.run().code == 0
    stage.go("go")
    stage.hear("still here")
    assert stage.all_gone()


SILENT, A_WORD = [["exit", 0]], [["out", "Execution error\n"], ["exit", 0]]


@pytest.mark.parametrize(
    ("steps", "planted"),
    [
        *((SILENT, False), (A_WORD, True)),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ((SILENT, True), (A_WORD, False))),
    ],
)
def test_an_agent_that_exits_with_0_on_a_signal(stage: Stage, steps: list[Any], *, planted: bool) -> None:
    """As Claude and Gemini do: nothing succeeded, and nothing is known of the session."""
    if planted:
        stage.plant()
    on_sigint = [["on", "SIGINT", steps], *HANG]
    stage.script(fresh=on_sigint, resumed=on_sigint)
    for _ in range(4):
        process = stage.start("--result", str(stage.result_file), command=["claude", "-p", "go on"])
        stage.hear("ready")
        process.send_signal(signal.SIGINT)
        assert stage.finish(process).code == 130
        assert stage.result["verdict"] == "other"
    # However often: it is not given up.
    assert [told["resumed"] for told in stage.told("start")] == [planted] * 4
    assert stage.kept() if planted else stage.stored() is None
    assert stage.counters == (0, 0, 0)


@pytest.mark.parametrize("code", [0, 7])
def test_an_agent_that_handles_a_signal_has_the_last_word(stage: Stage, code: int) -> None:
    stage.script(fresh=[["on", "SIGTERM", [*SAID, ["exit", code]]], *HANG])
    process = stage.start()
    stage.hear("ready")
    process.terminate()
    done = stage.finish(process)
    assert (done.code, done.out) == (code, TURN.encode())
    assert stage.saved(E)
    assert not stage.leased()


def test_user_signals_are_passed_on(stage: Stage) -> None:
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
    process = stage.start_in_shell('trap "" HUP; exec "$@"')
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
    assert stage.result["reason"] == "stopped by SIGTERM while no agent ran"


def test_a_signal_while_it_waits_for_the_lease(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    first = stage.start()
    stage.hear("ready")
    second = stage.start("--wait", "1h")
    stage.wait_until_asked_in_vain()
    second.terminate()
    assert stage.finish(second).code == 143
    stage.go("go")
    assert stage.finish(first).code == 0
    assert len(stage.starts) == 1


def test_a_signal_while_the_agent_starts_is_not_lost() -> None:
    signals = Signals(PASSED_ON)
    process = subprocess.Popen(["/bin/sleep", "60"], process_group=0)
    with signals.installed():
        with signals.held() as pass_to:
            signal.raise_signal(signal.SIGTERM)
            assert process.poll() is None
            pass_to(partial(send, process.pid))
            assert process.wait(timeout=10) == -signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # what the turn gave is still to be saved
        with pytest.raises(Stopped) as stopped:
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


@pytest.mark.usefixtures("patient")
def test_the_wrapper_is_killed(stage: Stage) -> None:
    """The agent's group ends by itself, the lease lapses by itself, and the next one gets it."""
    stage.plant()
    stage.script(resumed=FAMILY)
    process = stage.start()
    for _ in range(2):
        stage.hear("ready")
    process.kill()
    assert stage.all_gone()
    assert stage.finish(process).code == -signal.SIGKILL
    assert stage.kept()
    lease = stage.cli.keys.lease(KEY)
    assert LEASE_GRACE_MS < stage.cli.raw.pttl(lease) <= LEASE_GRACE_MS + 30_000
    assert stage.run().code == 75
    stage.cli.raw.pexpire(lease, LEASE_GRACE_MS + 200)
    stage.script(resumed=SAID)
    done = stage.run("--wait", "30s")
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.saved(E)


def test_the_wrapper_is_killed_and_the_agent_ignores_sigterm(stage: Stage) -> None:
    stage.script(fresh=[["on", "SIGTERM", [["tell", "term"]]], *HANG])
    process = stage.start()
    stage.hear("ready")
    process.kill()
    stage.hear("term")
    assert stage.all_gone()
