from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import test_cli_support
from tests.run.stage import Stage, staged
from tests.stores import Place
from tests.test_cli_support import Cli

cli, hasty, no_variables = test_cli_support.cli, test_cli_support.hasty, test_cli_support.no_variables


@pytest.fixture(scope="session")
def url(valkey: Place) -> str:
    return valkey.url


@pytest.fixture
def stage(tmp_path: Path, cli: Cli) -> Iterator[Stage]:
    """A stage whose agents have a turn, unless a test scripts them otherwise."""
    with staged(tmp_path, cli) as stage:
        stage.script()
        yield stage
