"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from common.files import replacing


class Refused(Exception):
    pass


def refused(error: OSError) -> Refused:
    return Refused(error.strerror)


def test_a_link_and_the_mode_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "policy.onnx", tmp_path / "link.onnx"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with replacing(link, refused) as part:
        assert part.suffix == ".onnx"
        part.write_text("new")
        assert target.read_text() == "old"
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(target.parent) == ["policy.onnx"]


def test_what_stood_there_stays_where_the_writer_fails(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_text("old")
    with pytest.raises(OSError, match="directory"), replacing(path, refused) as part:
        os.link(part, tmp_path / "half" / "a folder that is not there")
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["film.mp4"])


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "film.mp4"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(Refused, match="is there already, and is no file"), replacing(link, refused):
        pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["n" * 250 + ".mp4", "\u00fc" * 125 + ".mp4"])
def test_every_name_that_the_disk_takes_is_taken(name, tmp_path):
    with replacing(tmp_path / name, refused) as part:
        part.write_text("film")
    assert os.listdir(tmp_path) == [name]


def test_what_killed_processes_have_left_is_removed_after_a_day(tmp_path):
    path = tmp_path / "film [1].mp4"
    old, new = (
        tmp_path / ".film [1].1-0a.unfinished.mp4",
        tmp_path / ".film [1].2-0b.unfinished.mp4",
    )
    others = tmp_path / ".another.1-0c.unfinished.mp4"
    for part in (old, new, others):
        part.touch()
    for part in (old, others):
        os.utime(part, (0, 0))
    with replacing(path, refused) as part:
        part.write_text("new")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, new.name, others.name}
