"""The sorter of an export: rows come back in order, each key once."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import FileNotWritten
from redis_sessions.legacy.transfer import Sorter

rows = st.lists(
    st.tuples(st.text(max_size=3), st.sampled_from(["A", "B"]), st.integers(0, 9), st.none() | st.integers(0, 9))
)


@given(st.lists(rows, max_size=4))
def test_sorted_and_the_last_of_each_key(pages):
    with Sorter() as sorter:
        for page in pages:
            sorter.put(page)
        assert [row for batch in sorter.batches() for row in batch] == sorted(
            {row[0]: row for page in pages for row in page}.values()
        )


@pytest.fixture
def full_disk():
    """No file grows beyond a megabyte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def many():
    return ((f"key{n}", "ID-1" * 50, n, None) for n in range(100_000))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_of_ours():
    with pytest.raises(FileNotWritten, match=r"temporary directory has no room.*set TMPDIR"), Sorter() as sorter:
        sorter.put(many())


def test_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    with Sorter() as sorter:
        sorter.put(many())
        assert sum(map(len, sorter.batches())) == 100_000
        assert os.listdir(tmp_path) == []
