from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import test_cli_support
from tests.run.stage import CLOCK, PATIENT, Stage, staged
from tests.run.starter import Starter
from tests.stores import Place
from tests.test_cli_support import Cli

cli, hasty, no_variables = test_cli_support.cli, test_cli_support.hasty, test_cli_support.no_variables


@pytest.fixture(scope="session")
def url(valkey: Place) -> str:
    return valkey.url


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def stage(tmp_path: Path, cli: Cli, starter: Starter) -> Iterator[Stage]:
    """A stage whose agents have a turn, unless a test scripts them otherwise."""
    with staged(tmp_path, cli, starter) as stage:
        stage.script()
        yield stage


@pytest.fixture
def time_is_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets an hour pass for the program at once: what is to happen before a time limit has happened by then."""
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", CLOCK])
    return (stage.directory / "over").touch


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program waits an hour for what it has asked to end: what ends soon has ended by itself."""
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", PATIENT])
