from __future__ import annotations

from tests import test_cli_support

no_variables = test_cli_support.no_variables
