"""A file is replaced completely or not at all; a link, a pipe and a device stay what they are."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from redis_sessions import FileNotWritten
from redis_sessions.legacy.atomic_file import Replacement, clear_file, replace_file


def test_a_file_is_private_and_in_place_at_the_end(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with Replacement(path) as replacement:
        replacement.file.write("new")
        replacement.file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to("elsewhere/target")
    for text in ("first", "second"):  # it leads nowhere at first
        replace_file(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]
    assert os.listdir(target.parent) == ["target"]


def test_what_would_be_replaced_is_cleared(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("target")
    os.mkfifo(pipe)
    replace_file(target, "old")
    for path in (link, target, pipe, "/dev/null"):
        clear_file(path)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    with pytest.raises(FileNotWritten, match="Is a directory"):
        clear_file(tmp_path)


def test_a_link_to_itself(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(FileNotWritten, match="link can't be written"):
        replace_file(tmp_path / "link", "text")


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and what was read from it in the end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()

    def end():
        reader.join(timeout=10)
        return read

    yield path, end
    if reader.is_alive():
        os.close(os.open(path, os.O_WRONLY))
        reader.join()


def test_a_pipe_is_written_to(pipe, tmp_path):
    path, read = pipe
    replace_file(path, "text")
    assert read() == ["text"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_pipe_gets_nothing_when_the_block_fails(pipe):
    path, read = pipe
    with pytest.raises(ZeroDivisionError), Replacement(path) as replacement:
        replacement.file.write("text" * (1 // 0))
    os.close(os.open(path, os.O_WRONLY))
    assert read() == [""]


def test_a_link_to_a_pipe(pipe, tmp_path):
    path, read = pipe
    (tmp_path / "link").symlink_to(path)
    replace_file(tmp_path / "link", "text")
    assert read() == ["text"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_and_a_missing_folder(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "out"):
        with pytest.raises(FileNotWritten, match="can't be written"):
            replace_file(path, "text")
    assert os.listdir(tmp_path) == []
    assert not [name for name in os.listdir(tmp_path.parent) if name.startswith(f".{tmp_path.name}.")]
