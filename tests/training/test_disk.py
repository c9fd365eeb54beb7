"""A disk that takes no more does not stop a run; what it could not save in the end it says."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from common import checkpoint
from common.errors import UserError
from tests.training.runs import SMALL, UPDATES_PER_CHECKPOINT, running
from training.report import SCALARS_EVERY_S
from training.run import Run

FLAGS = (
    "--env", "CartPole-v1", *SMALL, "--test_episodes", "1", "--test_max_steps", "3",
    "--train_total_steps", "100000", "--checkpoint_share", "0.00192", "--run_dir",
)  # fmt: skip


def as_root(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all the room of a disk; the file that does is returned."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


class Training:
    """A run that is trained step by step."""

    def __init__(self, run: Run):
        self.run = run
        self._rollouts = run.collect()

    def to_the_next_save(self) -> None:
        time.sleep(SCALARS_EVERY_S)  # all is well again only once scalars were written too
        for _ in range(UPDATES_PER_CHECKPOINT):
            rollout = next(self._rollouts)
            self.run.record(rollout, self.run.learn(rollout), {})


def updates_of(run_dir: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (run_dir / "metrics.jsonl").open()]


def newest(run_dir: Path) -> int:
    saved, complaints = checkpoint.load_newest(run_dir / "checkpoints")
    assert complaints == []
    return saved.state["update"]


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a run has said about its disk."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if "written again" in line or "cannot" in line]


def test_a_full_disk(small_disk, capsys):
    run_dir = small_disk / "run"
    with running(*FLAGS, str(run_dir)) as run:
        training = Training(run)
        training.to_the_next_save()
        assert newest(run_dir) == 3
        filler = fill(small_disk)
        for _ in range(3):
            training.to_the_next_save()
        run.evaluations.last(run.agent.weights(), run.global_step)
        assert newest(run_dir) == 3
        assert not (run_dir / "checkpoints" / "best").exists()
        (line,) = told(capsys)
        assert "No space left on device" in line
        assert line.endswith("Training goes on, and this is tried again")

        filler.unlink()
        training.to_the_next_save()
        (line,) = told(capsys)
        assert line.endswith("is written again, and so is all else")
        assert newest(run_dir) == 15
        assert updates_of(run_dir) == list(range(1, 16))
        assert checkpoint.load(run_dir / "checkpoints" / "best").state["return_mean"] == 3.0

        fill(small_disk)
        training.to_the_next_save()
        run.exit_reason = "finished"
        with pytest.raises(UserError, match=r"end could not be saved in .* \(.*the checkpoint: No "
                                            r"space.*make room and go on from update-00000015 by"):  # fmt: skip
            run.__exit__()
    (line,) = told(capsys)
    assert "cannot be written" in line
    filler.unlink()
    with running("--resume", str(run_dir)) as run:
        assert run.agent.update == 15


@contextlib.contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """Files that not even root can write, also those that are open; as a mount that has failed."""
    everything = [str(path) for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    try:
        as_root("chattr", "+i", *everything)
        yield
    finally:
        subprocess.run(["chattr", "-i", *everything], capture_output=True)


def test_a_read_only_folder(tmp_path, capsys):
    run_dir = tmp_path / "run"
    with running(*FLAGS, str(run_dir)) as run:
        training = Training(run)
        training.to_the_next_save()
        with immutable(run_dir):
            for _ in range(2):
                training.to_the_next_save()
            assert newest(run_dir) == 3
            assert len(told(capsys)) == 1
        training.to_the_next_save()
        assert len(told(capsys)) == 1
        assert newest(run_dir) == 12
        assert updates_of(run_dir) == list(range(1, 13))
        run.exit_reason = "finished"
        run.__exit__()
    assert json.loads((run_dir / "summary.json").read_text())["exit_reason"] == "finished"


@pytest.mark.parametrize("removed", ["the folder", "what it holds"])
def test_a_folder_that_is_removed(removed, tmp_path, capsys):
    run_dir = tmp_path / "run"
    with running(*FLAGS, str(run_dir)) as run:
        training = Training(run)
        training.to_the_next_save()
        if removed == "the folder":
            shutil.rmtree(run_dir)
        else:
            subprocess.run(f"rm -r {run_dir}/* {run_dir}/.lock", shell=True, check=True)
        training.to_the_next_save()
        assert f"run folder {run_dir} was removed: it is made anew" in capsys.readouterr().out
        assert newest(run_dir) == 6
        training.to_the_next_save()
        assert updates_of(run_dir) == [7, 8, 9]
        assert "removed" not in capsys.readouterr().out
        with pytest.raises(UserError, match="still runs"), running("--resume", str(run_dir)):
            pass
        run.exit_reason = "finished"
        run.__exit__()
    assert list((run_dir / "visualdl").iterdir())
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["config"]["env"] == "CartPole-v1"
    with running("--resume", str(run_dir)) as run:
        assert run.agent.update == 9


def test_nothing_is_written_to_another_folder_in_its_place(tmp_path, capsys):
    run_dir = tmp_path / "run"
    with running(*FLAGS, str(run_dir)) as run:
        training = Training(run)
        training.to_the_next_save()
        run_dir.rename(tmp_path / "moved")
        run_dir.mkdir()
        training.to_the_next_save()
        assert list(run_dir.iterdir()) == []
        (line,) = told(capsys)
        assert "another folder has its place" in line
        run_dir.rmdir()
        (tmp_path / "moved").rename(run_dir)
        training.to_the_next_save()
        assert newest(run_dir) == 9
        assert updates_of(run_dir) == list(range(1, 10))
