"""Several real processes at once: no conversation runs twice at a time, and no saved ID is lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redis_sessions import SessionStore, StoreSettings

WORKERS = 8
TURNS = 25


@pytest.mark.parametrize("name", ["valkey", "cluster", pytest.param("redis", marks=pytest.mark.long)])
def test_eight_processes_hammering_one_conversation(name, places, namespace, tmp_path):
    place = places.get(name)
    arguments = [place.url, namespace, "acme/shop#42", str(TURNS), str(tmp_path)]
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.hammer", *arguments, f"w{n}"], stderr=subprocess.PIPE, text=True)
        for n in range(WORKERS)
    ]
    complaints = [worker.communicate(timeout=100)[1] for worker in workers]
    assert complaints == [""] * WORKERS
    runs = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    assert len(runs) == WORKERS * TURNS
    # Each run was asked to resume exactly what the one before it had given: no save was lost, none came twice.
    assert [asked for asked, _ in runs] == ["None", *(given for _, given in runs[:-1])]
    with SessionStore.from_url(place.url, StoreSettings(namespace=namespace)) as store:
        assert store.get("acme/shop#42") == runs[-1][1]
        counters = store.report().counters
        assert counters == {
            "resume_failures_total": 0,
            "resumes_total": WORKERS * TURNS - 1,
            "fresh_starts_total": 1,
            "gave_up_total": 0,
            "rotations_total": 0,
        }
        store.delete("acme/shop#42")
    for counter in counters:
        place.raw.delete(f"{namespace}:counter:{counter}")
