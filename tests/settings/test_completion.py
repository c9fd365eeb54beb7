"""Real shells complete the flags of train.py."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings.config import ConfigError
from settings.sources import parse
from tests.conftest import ROOT, run_command

READY, WAIT_S = b"ready: yes", 30.0
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; source"),
}


class Terminal:
    """An interactive shell that has the script."""

    def __init__(self, shell: str, script: Path):
        self._own, other = pty.openpty()
        command, source = SHELLS[shell]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=other, stdout=other, stderr=other, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        )  # fmt: skip
        os.close(other)
        self.type(f"{source} {script}; echo ready: 'y'es\n", READY)

    def type(self, keys: str, wanted: bytes) -> None:
        """Type, and wait until something is on the screen."""
        os.write(self._own, keys.encode())
        shown = b""
        while wanted not in shown:
            assert select.select([self._own], [], [], WAIT_S)[0], f"{wanted} is not in {shown}"
            shown += os.read(self._own, 65536)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._own)


@pytest.fixture(params=SHELLS)
def terminal(request, tmp_path) -> Iterator[Terminal]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    done = run_command("train.py", "--completion", request.param)
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / "script"
    script.write_text(done.stdout)
    terminal = Terminal(request.param, script)
    yield terminal
    terminal.close()


CLEAR = "\x15"  # Ctrl-U empties the line


def test_flags_their_choices_and_environments_are_completed(terminal):
    terminal.type("python train.py --learning_rate_s\t", b"--learning_rate_schedule")
    terminal.type(f"{CLEAR}{sys.executable} train.py --seed 1 --device cu\t", b"--device cuda")
    terminal.type(f"{CLEAR}python train.py --estimator=td\t", b"--estimator=td_lambda")
    terminal.type(f"{CLEAR}python train.py --env HalfCheetah-v\t\t", b"HalfCheetah-v5")
    terminal.type(f"{CLEAR}python train.py --preset rl\t", b"rl-games")
    terminal.type(f"{CLEAR}python train.py --run_dir prese\t", b"presets")
    terminal.type(f"{CLEAR}python evaluate\t", b"python evaluate.py")  # as without the script


def test_another_shell_is_refused():
    for shell in ("fish", ""):
        with pytest.raises(ConfigError, match=f"completion is '{shell}', but must be bash or zsh"):
            parse(["--completion", *filter(None, [shell])])
    with pytest.raises(ConfigError, match="completion is 'fish', but must be bash or zsh"):
        parse(["--completion=fish"])
