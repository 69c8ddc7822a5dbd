"""`run --replicas`: whether replicas have the session that a turn ended with."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests import test_cli_support
from tests.run.stage import Stage
from tests.test_replicas import Pair


def test_it_says_so_if_replicas_lack_the_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        pair = Pair(None, stack)
        options = ("--url", pair.servers[0].url, "--replicas", "1", "--result", str(stage.result_file))
        with monkeypatch.context() as patient:  # on a busy machine a replica may take its time
            program = test_cli_support.program_with(socket_timeout_ms=20_000)
            patient.setattr(test_cli_support, "PROGRAM", program)
            done = stage.run(*options)
        assert (done.code, done.said, stage.result["replicated"]) == (0, [], True)
        with pair.behind():
            done = stage.run(*options)
        assert (done.code, stage.result["saved"], stage.result["replicated"]) == (0, True, False)
        [said] = {line for line in done.said if "replicas have it" in line}
        assert "0 replicas have it, not 1" in said
        assert stage.run("--url", pair.servers[0].url, "--result", str(stage.result_file)).code == 0
        assert stage.result["replicated"] is None
