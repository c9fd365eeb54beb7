"""What trackers show, read by their own programs, and looked at in a browser."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from visualdl.reader.reader import LogReader

from common.errors import UserError
from common.ports import free_port
from rollout import Episode
from settings.config import ConfigError
from settings.sources import parse
from tests.browser import needs_chromium, page
from tests.conftest import BIN, is_running, wait_until
from tests.evaluation.untrained import untrained
from train import check
from training import usage
from training.film import NoFilm, as_gif, film_best
from training.report import Report
from training.trackers.tags import tagged
from training.usage import Usage

LINE = {
    "loss/policy": -0.5, "loss/value": 0.5, "approx_kl": 0.25, "sps": 10.0, "restarts": 0,
    "nan": float("nan"),
}  # fmt: skip
TAGS = [
    "loss/policy", "loss/value", "train/approx_kl", "time/sps", "system/restarts",
    "episode/return_mean", "episode/length_mean", "train/episodes", "episode/win",
]  # fmt: skip


def tracked(folder: Path, *trackers: str) -> Report:
    """A report of three updates, which is still open."""
    folder.mkdir(exist_ok=True)
    flags = ["--env", "CartPole-v1", "--train_total_steps", "100", "--track", *trackers]
    report = Report(folder, parse(flags))
    report.add_episodes([Episode(10.0, 5, {"win": 1.0})])
    for update in range(1, 4):
        report._tracked_from = 0.0
        report.write(LINE | {"update": update, "global_step": update * 10})
    return report


def film(folder: Path) -> Path:
    frames = np.zeros((120, 64, 352, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, number : number + 100] = 255
    path = folder / "film.mp4"
    imageio.imwrite(path, frames, fps=30)
    return path


def test_tags_have_groups_of_which_the_first_by_the_alphabet_has_the_return():
    tags = list(
        tagged(LINE | {"episode_return_mean": 1.0, "global_step": 1, "eval/return_mean": 2.0})[1]
    )
    assert tags == [
        "loss/policy", "loss/value", "train/approx_kl", "time/sps", "system/restarts",
        "episode/return_mean", "eval/return_mean",
    ]  # fmt: skip
    assert min(tags) == "episode/return_mean"


def test_an_evaluation_is_shown_at_the_steps_of_its_weights():
    late = {"global_step": 50, "sps": 2.0, "eval/return_mean": 3.0, "eval/global_step": 20}
    assert tagged(late) == {50: {"time/sps": 2.0}, 20: {"eval/return_mean": 3.0}}
    assert tagged(late | {"eval/global_step": 50}) == {
        50: {"time/sps": 2.0, "eval/return_mean": 3.0}
    }


def test_a_film_becomes_a_small_moving_image(tmp_path):
    image = imageio.imread(as_gif(film(tmp_path)), index=None)
    assert image.shape == (60, 32, 176, 3)  # every second frame and pixel


@pytest.fixture
def visualdl(tmp_path):
    """Starts VisualDL's server over the folder; its address."""
    port = free_port()
    server = subprocess.Popen(
        [str(BIN / "visualdl"), "--logdir", str(tmp_path), "--language", "en", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield f"http://127.0.0.1:{port}/app"
    os.killpg(server.pid, 9)
    server.wait()


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.status == 200
        return answer.read()


def serving(address: str) -> bool:
    try:
        return bool(fetch(address))
    except OSError:
        return False


def test_visualdl_shows_a_run_from_before_its_resume(tmp_path):
    tracked(tmp_path / "run", "visualdl").close()
    (file,) = (tmp_path / "run" / "visualdl").iterdir()
    with open(file, "ab") as killed:
        killed.write((1000).to_bytes(8, "little") + b"half a record")
    tracked(tmp_path / "run", "visualdl").close()
    assert [*file.parent.iterdir()] == [file]  # of several it shows the newest alone
    reader = LogReader(str(tmp_path))
    reader.load_new_data(update=True)
    tag = str(file.parent), "episode%return_mean"  # as it names tags
    assert [row.id for row in reader.data_manager.get_reservoir("scalar").get_items(*tag)] == [
        10, 20, 30, 10, 20, 30,
    ]  # fmt: skip


@needs_chromium
@pytest.mark.slow
def test_visualdl_opens_with_the_return(visualdl, tmp_path):
    report = tracked(tmp_path / "run", "visualdl")
    report._track(lambda tracker: tracker.film(film(tmp_path), 30))
    report.close()
    wait_until(lambda: serving(f"{visualdl}/index"), 40, "visualdl")

    tags = json.loads(fetch(f"{visualdl}/api/scalar/tags"))["data"]
    assert set(TAGS) <= set(tags["tags"][0])
    run = urllib.request.quote(tags["runs"][0], safe="")
    data = json.loads(fetch(f"{visualdl}/api/scalar/list?run={run}&tag=episode%2Freturn_mean"))[
        "data"
    ]
    assert [row[1:] for row in data] == [[step, 10.0] for step in (10, 20, 30)]

    with page(tmp_path) as shown:
        shown.go_to(f"{visualdl}/scalar")
        shown.wait_for("episode", "train")
        heads = shown.value("[...document.querySelectorAll('h3')].map(h => h.innerText).join()")
        assert heads == "episode,loss,system,time,train"
        blue = np.array((0x29, 0x32, 0xE1))  # VisualDL's first colour, here of the curve

        def draws_the_return() -> bool:
            near = np.abs(shown.picture()[180:480, 40:460].astype(int) - blue).sum(-1) < 30
            return bool(near.sum() > 100)

        wait_until(draws_the_return, 60, "the first curve")
        shown.go_to(f"{visualdl}/hyper-parameter")
        shown.wait_for("env_num", "CartPole-v1")
        shown.go_to(f"{visualdl}/sample/image")
        shown.wait_for("eval/film")


def test_tensorboard_reads_scalars_settings_and_the_film(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    report = tracked(run_dir, "tensorboard")
    report._track(lambda tracker: tracker.film(film(tmp_path), 30))
    assert report.pages == f"tensorboard --logdir {tmp_path}"
    report.close()
    read = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert set(TAGS) <= set(read.Tags()["scalars"])
    rows = read.Scalars("episode/return_mean")
    assert [(row.step, row.value) for row in rows] == [(10, 10.0), (20, 10.0), (30, 10.0)]
    (image,) = read.Images("eval/film")
    assert image.encoded_image_string.startswith(b"GIF89a")
    assert (image.width, image.height) == (176, 32)
    (settings,) = read.Tensors("settings/text_summary")
    assert b"|env|CartPole-v1|" in settings.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in read.summary_metadata


def test_trackers_go_on_in_a_folder_that_is_made_anew(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    report = tracked(run_dir, "tensorboard")
    run_dir.rename(tmp_path / "removed")
    run_dir.mkdir()
    report.reopen()
    report._tracked_from = 0.0
    report.write(LINE | {"update": 4, "global_step": 40})
    report.close()
    read = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [row.step for row in read.Scalars("time/sps")] == [40]
    assert "_hparams_/session_start_info" in read.summary_metadata


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def records_of(run_dir: Path) -> bytes:
    """What wandb has in its files of a run's last part."""
    (file,) = (run_dir / "wandb" / "latest-run").glob("*.wandb")
    return file.read_bytes()


def test_wandb_has_scalars_settings_and_the_film_and_a_resumed_run_has_its_id(
    offline, tmp_path, capfd
):
    run_dir = tmp_path / "run"
    report = tracked(run_dir, "wandb")
    report._track(lambda tracker: tracker.film(film(tmp_path), 30))
    assert report.pages == f"wandb sync {(run_dir / 'wandb' / 'latest-run').resolve()}"
    report.close()
    written = records_of(run_dir)
    assert all(tag.encode() in written for tag in TAGS)
    assert b"CartPole-v1" in written
    assert b"eval/film" in written
    assert list((run_dir / "wandb" / "latest-run" / "files").rglob("*.mp4"))
    first = (run_dir / "wandb" / "latest-run").readlink().name
    tracked(run_dir, "wandb").close()
    second = (run_dir / "wandb" / "latest-run").readlink().name
    assert second.rpartition("-")[2] == first.rpartition("-")[2]
    printed = capfd.readouterr()  # gRPC, where an earlier test has used it, tells of forks
    assert "wandb" not in printed.out + printed.err
    assert "wandb: " in (run_dir / "wandb" / "output.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_report_goes_on_without_wandb_where_its_process_is_lost(
    offline, number, tmp_path, capsys
):
    report = tracked(tmp_path / "run", "wandb", "tensorboard")
    (tracker, _) = report._trackers
    pid = tracker._child.pid
    os.kill(pid, number)
    lost = []

    def is_lost() -> bool:
        report._tracked_from = 0.0
        report.write(LINE | {"update": 4, "global_step": 40} | {str(n): n for n in range(99)})
        lost.extend(line for line in capsys.readouterr().out.splitlines() if "is lost" in line)
        return bool(lost)

    wait_until(is_lost, 60, "the loss of wandb's process to be said")
    why = "was killed by signal 9" if number == signal.SIGKILL else "its process hangs"
    assert why in lost[0]
    assert lost[0].endswith("uploads what it has in its files. The run goes on without it")
    wait_until(lambda: not is_running(pid), 20, "the end of the process")
    assert report.pages == f"tensorboard --logdir {tmp_path}"
    report.write(LINE | {"update": 5, "global_step": 50})
    report.close()
    assert report.writes.failing == {}
    assert "lost" not in capsys.readouterr().out


def test_wandb_that_does_not_begin_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    with pytest.raises(UserError, match=r"wandb does not begin: .*mode.*run `wandb login` once"):
        tracked(tmp_path / "run", "wandb")


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_begun(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "wandb" else found(name, *more),
    )
    with pytest.raises(ConfigError, match="wandb is not installed: run `make track`"):
        check(parse(["--env", "CartPole-v1", "--track", "wandb"]))


def test_an_environment_without_pictures_is_not_filmed(tmp_path):
    with pytest.raises(NoFilm, match="render"):
        film_best(untrained("tests.toy_envs:Slow", tmp_path))


def test_nothing_is_left_of_a_film_whose_process_was_killed(tmp_path):
    folder = untrained("tests.evaluation.drawn_envs:EndsItsProcess", tmp_path)
    before = sorted(folder.iterdir())
    other = folder / ".best.1-00ff.unfinished.mp4"  # of another process, which goes on
    other.touch()
    with pytest.raises(NoFilm):
        film_best(folder)
    assert sorted(folder.iterdir()) == sorted([*before, other])


def test_the_use_of_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr(usage, "_EVERY_S", 0.0)
    measured = Usage("cpu")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        wait_until(lambda: measured.measure()["system/children_cores"] > 0.2, 60, "a busy child")
        row = measured.measure()
    finally:
        busy.kill()
        busy.wait()
    assert row.keys() == {
        f"system/{name}"
        for name in (
            "learner_cores", "learner_gib", "children_cores", "children_gib", "cpu_share", "memory_share"
        )
    }  # fmt: skip
    assert 0.01 < row["system/learner_gib"] < 100
    assert 0 < row["system/memory_share"] < 1
    monkeypatch.setattr(usage, "_EVERY_S", 60.0)
    assert measured.measure() == {}
