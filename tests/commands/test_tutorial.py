"""The tutorial: its files as it prints them, its commands as it prints them, with fewer steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from common.ports import free_port
from tests.conftest import BIN, ROOT

# these start runs, a cluster and processes
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
SECTIONS = dict(re.findall(r"^## \d\. (.+?)$(.+?)(?=^## |\Z)", TUTORIAL, re.M | re.S))
FILES = dict(re.findall(r"into\s`(\w+\.py)`:\n\n```python\n(.+?)```", TUTORIAL, re.S))
# the tests run in what these two make
INSTALLATION = {"make venv", "source .venv/bin/activate"}
STEPS = 3000


def commands(section: str) -> list[str]:
    """The commands of a section, for this machine: it stands for machine A and for machine B."""
    prose = re.sub(r"```.+?```", "", SECTIONS[section], flags=re.S)
    lines = re.findall(r"^    (?:machine [AB]\$ )?(\S.+)$", prose, re.M)
    return [
        re.sub(r"train\.py .+", rf"\g<0> --train_total_steps {STEPS}", line)
        for line in lines
        if line not in INSTALLATION
    ]


def type_in(lines: list[str], folder: Path) -> str:
    """Have a shell run the lines until one fails, and return what they print."""
    done = subprocess.run(
        ["bash", "-exc", "\n".join(lines)],
        cwd=folder, timeout=400, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with the project's commands, and the tutorial's files in a folder beside them."""
    for command in ("train.py", "evaluate.py", "plot.py"):
        (tmp_path / command).symlink_to(ROOT / command)
    (tmp_path / "files").mkdir()
    for name, text in FILES.items():
        (tmp_path / "files" / name).write_text(text)
    return tmp_path


def test_the_files_are_those_of_the_examples():
    assert FILES.keys() == {"my_env.py", "my_network.py", "my_loss.py"}
    for name, text in FILES.items():
        assert (ROOT / "examples" / name).read_text() == text


def test_a_first_agent(project):
    # it was finished with fewer steps than the tutorial's, and goes on for as many more
    *first, resume = commands("A first agent")
    type_in([*first, f"{resume} --train_total_steps {2 * STEPS}"], project)
    summary = json.loads((project / "runs" / "cartpole" / "summary.json").read_text())
    assert (summary["exit_reason"], summary["global_step"] >= 2 * STEPS) == ("finished", True)
    assert (project / "cartpole.mp4").stat().st_size > 0
    assert (project / "cartpole.png").stat().st_size > 0


@pytest.mark.xdist_group("xparl")
def test_an_environment_a_network_and_a_cluster_of_ones_own(project):
    mine = commands("Your own environment")
    mine.insert(mine.index("cd my_project") + 1, "cp ../files/*.py .")
    cluster = "\n".join(commands("A cluster of two machines"))
    port = str(free_port("127.0.0.2"))
    for written, here in (("10.0.0.1", "127.0.0.2"), ("10.0.0.2", "127.0.0.3"), ("8010", port)):
        cluster = cluster.replace(written, here)
    home = project / "home_of_b"
    copied = f"install -D -m 600 cluster.key {home}/cluster.key"
    for written, here in (("scp -p cluster.key 127.0.0.3:", copied), ("~/", f"{home}/")):
        assert cluster.count(written) == 1
        cluster = cluster.replace(written, here)
    try:
        printed = type_in([*mine, *commands("Your own network"), cluster], project)
    finally:  # where a command failed before the tutorial's own
        type_in([f"xparl stop --port {port}"], project)
    hashes = re.findall(r'summary\.json:.+"weights_sha256": "(\w{64})"', printed)
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]
    assert (project / "my_project" / "networks.png").stat().st_size > 0


def test_a_loss_of_ones_own(project):
    printed = type_in(commands("Your own loss"), project / "files")
    updates = [json.loads(line.partition("returns ")[2]) for line in printed.splitlines()]
    assert len(updates) == 40
    assert np.concatenate(updates[:3]).mean() < 40
    assert np.concatenate(updates[-5:]).mean() > 60  # it learns
    assert (project / "files" / "my_agent" / "manifest.json").exists()
