"""The panel on a terminal, as emulators of terminals show it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, wait_until
from tests.screen import Terminal
from training.panel import Curve

REPORT = """
import sys, tempfile
from pathlib import Path
from settings.config import Config
from training.report import Report
from rollout import Episode

report = Report(Path(tempfile.mkdtemp()), Config(env="CartPole-v1", train_total_steps=1000, track=("none",)))
line = {"loss/policy": .5, "loss/value": .25, "approx_kl": 0.01, "entropy": 0.7, "samplers_alive": 2,
        "raw_sps": 66600.4, "restarts": 1, "policy_lag_mean": 1.0, "time/sample_wait": 1.0, "time/learn": 3.0}
for step in range(1, 6):
    report.add_episodes([Episode(float(step), 9)])
    report.write(line | {"update": step, "global_step": 100 * step})
    report.say(f"sentence {step}")
    if step == 2:
        print("a warning", file=sys.stderr)
        report.write(line | {"update": step, "global_step": 200, "eval/return_mean": 42.0})
report.say("the last sentence")
report.close()
"""
PANEL = """
import sys
from rich.console import Console
from training import panel
from training.terminal import Shown

panel._EVERY_S = float(sys.argv[1])
panel = panel.Panel(Console(highlight=False), "CartPole-v1, seed 1")
for step in range(1, 10):
    panel.show(Shown(100 * step, 1000, 50.0, {"episode_return_mean": float(step)}))
    panel.say(f"sentence {step}")
    if not input():
        break
panel.close()
"""


def panel_of(text: list[str]) -> list[str]:
    """The lines from the panel's first one on."""
    (first,) = [number for number, line in enumerate(text) if "CartPole-v1, seed 1" in line]
    return text[first:]


def test_a_terminal_gets_a_panel_with_what_is_said_above_it():
    terminal = Terminal([sys.executable, "-c", REPORT], ROOT)
    assert terminal.end() == 0
    panel = panel_of(terminal.text)
    assert terminal.text[: -len(panel)] == [
        "sentence 1", "sentence 2", "a warning", *(f"sentence {n}" for n in (3, 4, 5)), "the last sentence",
    ]  # fmt: skip
    assert len(panel) == 6
    assert re.search(r" 50%  500/1,000 steps  ETA \d:\d\d:\d\d$", panel[1])
    assert re.fullmatch(r"return +3\.0  ▁.*█   evaluated 42.0, best 42.0", panel[2])
    assert re.fullmatch(r"speed +[\d,]+ steps/s   raw 66,600   waiting 25%", panel[3])
    assert re.fullmatch(
        r"losses +policy \+0.5000  value 0.2500  KL 0.0100  entropy 0.700", panel[4]
    )
    assert re.fullmatch(r"samplers +2 alive  restarts 1  lag 1.0", panel[5])
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0
    assert terminal.after == terminal.before


def test_the_panel_follows_the_size_of_the_window():
    terminal = Terminal([sys.executable, "-c", PANEL, "0.1"], ROOT)
    # it may be amid drawing whenever it is looked at
    terminal.wait_for(
        lambda text: any("return   1.0" in line for line in text) and len(panel_of(text)) == 6
    )
    terminal.resize(30, 4)
    terminal.wait_for(lambda text: len(text) == 3)  # no room for more, and the cursor's line
    assert all(len(line) < 30 for line in terminal.text)
    terminal.resize(100, 30)
    terminal.wait_for(lambda text: len(panel_of(text)) == 6 and len(panel_of(text)[0]) > 60)
    terminal.type(b"\n")
    assert terminal.end() == 0


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is missing: apt-get install tmux")
def test_a_line_that_a_terminal_breaks_is_erased_whole(tmp_path):
    """tmux, as many terminals do, breaks the lines of a window that has become narrower.

    It tells the program a moment later, and until then nothing is to be drawn. The window is full,
    otherwise rows go out of it at the top.
    """

    def tmux(*words: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def text() -> list[str]:
        lines = tmux("capture-pane", "-p", "-S", "-").splitlines()
        return [line.rstrip() for line in lines if line.strip()]

    def columns() -> str:
        tty = tmux("display-message", "-p", "#{pane_tty}").strip()
        return subprocess.run(
            ["stty", "size", "-F", tty], capture_output=True, text=True
        ).stdout.split()[1]

    program = shlex.join([sys.executable, "-c", PANEL, "1000"])
    tmux(
        "new-session",
        "-d",
        "-x",
        "100",
        "-y",
        "30",
        "-c",
        str(ROOT),
        f"stty -echo; seq 40; env -u COLUMNS -u LINES {program}",
    )
    try:
        wait_until(lambda: any("return   1.0" in line for line in text()), 60, "the panel")
        for number, width in enumerate(("40", "25", "60", "33", "100"), start=2):
            tmux("resize-window", "-x", width)
            wait_until(lambda width=width: columns() == width, 30, "the new width")
            tmux("send-keys", "on", "Enter")
            sentence = f"sentence {number}"
            wait_until(lambda sentence=sentence: sentence in text(), 30, sentence)
            wait_until(lambda: len(panel_of(text())) == 6, 30, "the whole panel, once")
        assert text()[:-6] == [
            *(str(number) for number in range(1, 41)),
            *(f"sentence {number}" for number in range(1, 7)),
        ]
    finally:
        tmux("kill-server")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1000])
def test_a_curve_shows_all_of_a_run_in_little_room(count):
    curve = Curve(8)
    for number in range(count):
        curve.add(float(number))
    shown = str(curve)
    assert len(shown) <= 8
    assert list(shown) == sorted(shown)  # it rises
    if count >= 8:
        assert len(shown) >= 4
        assert (shown[0], shown[-1]) == ("▁", "█")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    terminal = Terminal(["env", "TERM=dumb", sys.executable, "-c", REPORT], ROOT)
    assert terminal.end() == 0
    assert any(line.startswith("100/1,000 steps  10%  ETA") for line in terminal.text)
    assert "the last sentence" in terminal.text
