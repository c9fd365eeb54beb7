from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until


@pytest.fixture(scope="package")
def run(
    xparl_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A run at the cluster that lasts as long as the tests of this folder; its process and folder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--env", "CartPole-v1", "--samplers", "2", "--xparl_addr",
         xparl_cluster, "--train_total_steps", "100000000", "--compile", "off",
         "--run_dir", str(folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # the cluster's processes are told apart by their sessions
    )  # fmt: skip
    try:
        wait_until(lambda: metrics(folder), 120, "the first update")
        yield process, folder
    finally:
        process.kill()
        process.communicate()


def metrics(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    return path.read_text() if path.exists() else ""
