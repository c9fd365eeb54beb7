from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from envs import BadEnvironment
from evaluation.film import BadVideo, film, frames
from model import build_model
from settings.config import Config
from settings.sources import preset
from tests.conftest import files_no_larger_than


def episode_of(config: Config, greedy: bool = True) -> list[np.ndarray]:
    return list(frames(build_model(config), config, seed=0, greedy=greedy))


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("network", ["mlp", "lstm", "transformer"])
def test_every_network_is_filmed(network, greedy):
    config = Config(env="CartPole-v1", network=network, memory_steps=4, test_max_steps=12)
    images = episode_of(config, greedy)
    assert 9 <= len(images) <= 13
    assert images[0].shape == (400, 600, 3)
    assert images[0].std() > 5  # a picture, not one colour
    assert not np.array_equal(images[0], images[-1])


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"env": "tests.evaluation.drawn_envs:DrawnMasked"}, 7),
        ({"env": "tests.evaluation.drawn_envs:Secret", "critic_obs": "secret"}, 10),
    ],
    ids=["masked", "critic_obs"],
)
def test_environments_of_ones_own_are_filmed_as_they_are_played(settings, steps, greedy):
    images = episode_of(Config(**settings), greedy)
    assert [int(image[0, 0, 0]) for image in images] == list(range(steps + 1))


@pytest.mark.parametrize(
    ("env", "shape"), [("PongNoFrameskip-v4", (210, 160, 3)), ("microrts-8x8", (256, 256, 3))]
)
def test_a_familys_own_picture_is_filmed(env, shape):
    config = preset(env)
    config.test_max_steps = 30
    images = episode_of(config, greedy=False)
    assert len(images) == 31
    assert images[0].shape == shape
    assert not np.array_equal(images[0], images[-1])


def test_the_film_ends_with_the_step_limit():
    config = Config(env="tests.evaluation.drawn_envs:Secret", critic_obs="secret", test_max_steps=3)
    assert len(episode_of(config)) == 4


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("tests.toy_envs:ConstantReward", "takes no arguments"),
        ("tests.evaluation.drawn_envs:DrawsText", "returns a str"),
    ],
)
def test_an_environment_without_a_picture_is_said(env, reason, tmp_path):
    config = Config(env=env)
    path = tmp_path / "episode.mp4"
    with pytest.raises(BadEnvironment, match=f"cannot be rendered.*{reason}.*--video"):
        film(build_model(config), config, path, 0, True)
    assert not path.exists()


def test_a_video_that_cannot_be_written_is_said(tmp_path):
    config = Config(env="tests.evaluation.drawn_envs:Secret", critic_obs="secret")
    model = build_model(config)
    with pytest.raises(BadVideo, match=r"ends with \.mp4"):
        film(model, config, tmp_path / "episode.txt", 0, True)
    (tmp_path / "file").touch()
    with pytest.raises(BadVideo, match="cannot be written"):
        film(model, config, tmp_path / "file" / "episode.mp4", 0, True)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(BadVideo, match="is a folder"):
        film(model, config, tmp_path / "folder.mp4", 0, True)


@pytest.mark.parametrize("steps", [5, 2000])  # the disk is full at the end, and before
def test_a_disk_that_takes_no_more_is_said_and_an_earlier_film_stays(steps, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_text("the film before")
    config = Config(env="tests.evaluation.drawn_envs:Noisy", test_max_steps=steps)
    model = build_model(config)
    with (
        files_no_larger_than(1000),
        pytest.raises(BadVideo, match="could not be written to its end: is the disk full"),
    ):
        film(model, config, path, 0, True)
    assert path.read_text() == "the film before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["12:30.mp4", "~/film.mp4", "~draft.mp4", "n" * 240 + ".mp4"])
def test_a_film_has_the_name_that_was_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config(env="tests.evaluation.drawn_envs:Odd")
    assert film(build_model(config), config, Path(name), 0, True) == 11
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).name]


def test_a_film_goes_where_a_link_leads_and_keeps_the_mode_of_the_one_before(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "other")
    (tmp_path / "other").touch(0o600)
    config = Config(env="tests.evaluation.drawn_envs:Odd")
    assert film(build_model(config), config, tmp_path / "link.mp4", 0, True) == 11
    assert (tmp_path / "link.mp4").is_symlink()
    assert (tmp_path / "other").stat().st_size > 0
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("Floats", r"float32 \(32, 32, 3\), not \[height, width, 3\] of uint8"),
        ("Grows", r"\(34, 32, 3\) after \(32, 32, 3\)"),
    ],
)
def test_pictures_that_make_no_film_are_said(env, reason, tmp_path):
    config = Config(env=f"tests.evaluation.drawn_envs:{env}")
    with pytest.raises(BadEnvironment, match=f"cannot be rendered as images, .*{reason}"):
        film(build_model(config), config, tmp_path / "film.mp4", 0, True)


def test_pictures_of_odd_sides_are_cut(tmp_path, capfd):
    config = Config(env="tests.evaluation.drawn_envs:Odd")
    assert film(build_model(config), config, tmp_path / "film.mp4", 0, True) == 11
    said = capfd.readouterr()
    # grpc, where another test has brought it into this process, tells of every fork
    lines = [line for line in said.err.splitlines() if "skipping fork() handlers" not in line]
    assert (said.out, lines) == ("", [])


def test_what_the_environment_raises_is_not_the_disks(tmp_path):
    config = Config(env="tests.evaluation.drawn_envs:WithoutItsServer")
    with pytest.raises(OSError, match="the game server is gone"):
        film(build_model(config), config, tmp_path / "film.mp4", 0, True)


def test_any_seed_can_be_filmed():
    config = preset("PongNoFrameskip-v4")
    config.test_max_steps = 2
    images = [list(frames(build_model(config), config, seed, True)) for seed in (4_000_000_000, 7)]
    assert [len(episode) for episode in images] == [3, 3]


@pytest.mark.parametrize(
    ("env", "fps"),
    [
        ("tests.evaluation.drawn_envs:Secret", 30),
        ("tests.evaluation.drawn_envs:Slowly", 4),
        ("CartPole-v1", 50),
        ("PongNoFrameskip-v4", 15),
    ],
)
def test_a_film_is_as_fast_as_the_environment_says(env, fps, tmp_path):
    config = preset(env)
    config.critic_obs, config.test_max_steps = "secret", 3
    film(build_model(config), config, tmp_path / "episode.mp4", 0, True)
    assert imageio.immeta(tmp_path / "episode.mp4")["fps"] == fps
