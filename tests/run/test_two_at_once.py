"""Two `run` of one conversation: one at a time, and the lease is renewed while it lasts."""

from __future__ import annotations

import socket

import pytest

from redis_sessions.keys import LEASE_GRACE_MS
from tests import test_cli_support
from tests.run.stage import CLAUDE, KEY, REFUSED, SAID, TURN, E, Stage, resumed
from tests.servers import wait_until


def test_the_second_of_two_fails_at_once_and_names_the_first(stage: Stage) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    first = stage.start()
    stage.hear("ready")
    second = stage.run("--result", str(stage.result_file))
    assert (second.code, second.out) == (75, b"")
    [said] = second.said
    # Host and process, without the random part, by which the lease is owned.
    assert f"is leased by {socket.gethostname()}:{first.pid} for " in said
    assert (stage.result["how"], stage.result["saved"], stage.result["exit_code"]) == (None, False, 75)
    assert "is leased by" in stage.result["reason"]
    assert stage.leased()
    stage.go("go")
    assert stage.finish(first).code == 0
    assert stage.starts == [CLAUDE]
    assert stage.counters == (0, 1, 0)
    assert not stage.leased()


def test_one_of_two_runs(stage: Stage) -> None:
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
    stage.wait_until_asked_in_vain()
    assert len(stage.starts) == 1
    stage.go("go")
    assert stage.finish(first).code == 0
    done = stage.finish(second)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
    assert stage.starts == [CLAUDE, resumed("claude", E)]
    assert stage.counters == (1, 1, 0)


def test_the_lease_is_renewed_while_the_run_lasts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cli_support, "PROGRAM", test_cli_support.program_with(lease_ms=6_000))
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    process = stage.start()
    stage.hear("ready")
    lease = stage.cli.keys.lease(KEY)
    for _ in range(2):
        stage.cli.raw.pexpire(lease, LEASE_GRACE_MS + 10_000)
        wait_until(lambda: LEASE_GRACE_MS < stage.cli.raw.pttl(lease) <= LEASE_GRACE_MS + 6_000, "a renewal")
    assert stage.run().code == 75
    stage.go("go")
    assert stage.finish(process).code == 0


def test_no_second_run_if_the_conversation_was_taken_over(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["tell", "ready"], ["await", "go"], *REFUSED])
    process = stage.start("--verbose")
    stage.hear("ready")
    stage.cli.raw.set(stage.cli.keys.lease(KEY), "another:1:x", px=LEASE_GRACE_MS + 30_000)
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out) == (75, b"")
    assert "was taken over" in done.said[-1]
    assert any("refused attempt: No conversation found" in line for line in done.said)
    assert len(stage.starts) == 1
    assert stage.kept()
    assert stage.leased()


def test_a_run_whose_lease_was_released_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.plant()
    monkeypatch.setattr(test_cli_support, "PROGRAM", test_cli_support.program_with(lease_ms=1_500))
    stage.script(resumed=[["tell", "ready"], ["await", "go"], *SAID], fresh=SAID)
    process = stage.start("--result", str(stage.result_file))
    stage.hear("ready")
    stage.cli.raw.pexpire(stage.cli.keys.lease(KEY), LEASE_GRACE_MS + 60_000)  # on a busy machine it may have lapsed
    released = stage.cli.json("release", KEY, "--yes")
    assert (released["host"], released["pid"]) == (socket.gethostname(), process.pid)
    assert process.stderr is not None
    assert b"was taken over while its turn runs on" in process.stderr.readline()
    assert stage.cli("leases").stdout == ""
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, stage.result["saved"]) == (0, False)
    assert any("not saved" in line for line in done.said)
    assert stage.kept()
