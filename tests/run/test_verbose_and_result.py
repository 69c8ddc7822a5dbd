"""What `run --verbose` says in one line, and what --result writes, also about an ID that could not be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.stage import CLAUDE, REFUSED, SAID, TURN, E, R, Stage


@pytest.mark.parametrize(
    ("planted", "steps", "told"),
    [
        (None, SAID, f"started fresh; saved {E}"),
        (E, SAID, f"resumed {E}; saved {E}"),
        (None, [["exit", 3]], "the agent ended with 3 (other)"),
        (R, [["exit", 0]], "the agent ended with 1 (other) instead of 0: it printed nothing"),
    ],
)
def test_verbose_says_what_was_decided(stage: Stage, planted: str | None, steps: list[Any], told: str) -> None:
    if planted:
        stage.plant(planted)
    stage.script(fresh=steps, resumed=steps)
    done = stage.run("--verbose")
    assert done.said == [f"redis-sessions: {told}"]


def test_a_fresh_run_that_fails_after_a_refusal_reports_both(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=REFUSED, fresh=[["exit", 3]])
    done = stage.run("--result", str(stage.result_file))
    assert done.code == 3
    assert stage.result["previous"] == R
    assert stage.result["reason"] == f"session {R} was refused; run fresh, the agent ended with 3 (other)"


def test_a_result_that_cannot_be_written_at_the_end(stage: Stage, tmp_path: Path) -> None:
    """The turn was run, and its exit code is the agent's."""
    (tmp_path / "there").mkdir()
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    process = stage.start("--result", str(tmp_path / "there" / "result.json"))
    stage.hear("ready")
    (tmp_path / "there").rmdir()
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out) == (0, TURN.encode())
    assert "can't be written" in done.said[0]
    assert stage.saved(E)


@pytest.mark.parametrize(("command", "linked"), [(["claude", "--continue", "-p"], False), (["wrapper", "-p"], True)])
def test_an_old_result_is_never_taken_for_that_of_a_refused_command(
    stage: Stage, command: list[str], *, linked: bool
) -> None:
    old = stage.directory / "old.json"
    if linked:
        stage.result_file.symlink_to(old)
    assert stage.run("--result", str(stage.result_file)).code == 0
    assert old.exists() is linked
    assert stage.run("--result", str(stage.result_file), command=command).code == 2
    assert not stage.result_file.exists()
    assert not old.exists()
    assert stage.run("--result", str(stage.result_file)).code == 0
    assert stage.result["how"] == "resumed"
    assert old.exists() is linked


def test_an_old_result_is_gone_while_the_agent_runs(stage: Stage) -> None:
    """So it is not there either after `run` was killed."""
    stage.result_file.write_text("{}")
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID])
    process = stage.start("--result", str(stage.result_file))
    stage.hear("ready")
    assert not stage.result_file.exists()
    stage.go("go")
    assert stage.finish(process).code == 0
    assert stage.result["how"] == "fresh"


def test_an_id_the_runtime_cannot_have_is_not_tried(stage: Stage) -> None:
    stage.plant("5f2c9a")
    done = stage.run("--result", str(stage.result_file))
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.starts == [CLAUDE]
    assert stage.saved(E)
    assert stage.counters == (0, 1, 0)
    assert (stage.result["how"], stage.result["previous"]) == ("fresh", None)
    assert stage.result["reason"] == "Redis held '5f2c9a', which this agent can't resume: started fresh"


def test_an_id_the_runtime_cannot_have_survives_a_failed_turn(stage: Stage) -> None:
    stage.plant("5f2c9a")
    stage.script(fresh=[["exit", 3]])
    assert stage.run().code == 3
    assert stage.kept("5f2c9a")
    assert not stage.leased()
    assert stage.counters == (0, 0, 0)


def test_a_value_that_is_not_an_id(stage: Stage) -> None:
    stage.plant("--dangerously-skip-permissions")
    done = stage.run("--result", str(stage.result_file))
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.starts == [CLAUDE]
    assert stage.saved(E)
    assert stage.counters == (0, 1, 0)
    assert stage.result["reason"] == "what Redis held was not a valid session ID"
