"""Rows of a table in one test, where they can't fail apart. No tests."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def over(names: str | tuple[str, ...], rows: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with every row, as `pytest.mark.parametrize` would, but in one test and with the same fixtures.

    All rows are tried; then the test fails with the errors of all that failed, each with a note that has the row.
    """
    arguments = (names,) if isinstance(names, str) else names
    rows = list(rows)
    assert rows

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def every(*args: Any, **fixtures: Any) -> None:
            failed: list[BaseException] = []
            for row in rows:
                values = row if len(arguments) > 1 else [row]
                try:
                    test(*args, **fixtures, **dict(zip(arguments, values, strict=True)))
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised below, with the others
                    error.add_note(f"{', '.join(arguments)} = {row!r}")
                    failed.append(error)
            if failed:
                raise BaseExceptionGroup(f"{len(failed)} of {len(rows)} rows of {test.__qualname__}", failed)

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        every.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return every

    return decorate
