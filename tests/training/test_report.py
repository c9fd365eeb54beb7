from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rollout import Episode
from settings.config import Config
from tests.conftest import BIN, ROOT, wait_until
from training.report import Report

LINE = {"loss/policy": -0.5, "loss/value": 0.25, "sps": 10.0}


def make(folder: Path, **options) -> Report:
    return Report(folder, Config(env="CartPole-v1", train_total_steps=100), **options)


def test_metrics_are_one_object_a_line_and_what_is_unknown_is_null(tmp_path, capsys):
    report = make(tmp_path)
    report.write(LINE | {"update": 1, "global_step": 10, "nan": float("nan")})
    report.add_episodes([Episode(10.0, 5), Episode(20.0, 7)])
    report.write(LINE | {"update": 2, "global_step": 100, "nan": 1.0})
    report.close()
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["episode_return_mean"] is None
    assert first["nan"] is None
    assert (second["episode_return_mean"], second["episode_length_mean"]) == (15.0, 6.0)
    assert second["episodes"] == 2
    printed = capsys.readouterr().out.splitlines()
    assert re.match(r"10/100 steps  10%  ETA .* steps/s  return -  policy", printed[0])
    assert re.match(
        r"100/100 steps 100%  ETA 0:00:00  .* return 15.0  policy -0.5000 value 0.2500", printed[1]
    )


def test_the_mean_is_of_the_last_hundred_episodes(tmp_path):
    report = make(tmp_path)
    report.add_episodes([Episode(1000.0, 1)] * 50 + [Episode(1.0, 1)] * 100)
    assert report.means() == (1.0, 1.0)
    assert report.episodes == 150
    report.close()


def test_a_resumed_report_goes_on(tmp_path):
    report = make(tmp_path)
    report.add_episodes([Episode(3.0, 4)])
    report.write(LINE | {"update": 1, "global_step": 10})
    state = json.loads(json.dumps(report.state()))
    report.close()
    again = make(tmp_path, start_step=10, state=state)
    assert again.means() == (3.0, 4.0)
    again.write(LINE | {"update": 2, "global_step": 20})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2]
    assert lines[1]["time_s"] >= lines[0]["time_s"]


def test_a_line_that_a_killed_run_was_writing_spoils_no_other(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"upd')
    report = make(tmp_path)
    report.write(LINE | {"update": 2, "global_step": 20})
    report.close()
    first, torn, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (first, torn) == ('{"update": 1}', '{"upd')
    assert json.loads(second)["update"] == 2


def test_visualdl_serves_the_page_and_the_scalars(tmp_path):
    report = make(tmp_path)
    for update in range(3):
        report._scalars_due = 0.0
        report.write(LINE | {"update": update, "global_step": update * 10})
    report.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(BIN / "visualdl"), "--logdir", str(tmp_path), "--language", "en", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/app"

        def fetch(path: str) -> str:
            with urllib.request.urlopen(address + path, timeout=10) as answer:
                assert answer.status == 200
                return answer.read().decode()

        def serving() -> bool:
            try:
                return bool(fetch("/index"))
            except OSError:
                return False

        wait_until(serving, 40, "visualdl")
        assert "<html" in fetch("/index").lower()
        tags = json.loads(fetch("/api/scalar/tags"))["data"]
        assert "loss/policy" in tags["tags"][0]
        run = urllib.request.quote(tags["runs"][0], safe="")
        data = json.loads(fetch(f"/api/scalar/list?run={run}&tag=loss%2Fpolicy"))["data"]
        assert [row[2] for row in data] == pytest.approx([-0.5] * 3)
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_a_terminal_gets_a_progress_bar():
    """In a pseudo-terminal, as a person sees it."""
    ours, theirs = pty.openpty()
    code = (
        "from pathlib import Path; from training.report import Report; from settings.config import Config; import tempfile\n"
        "r = Report(Path(tempfile.mkdtemp()), Config(env='CartPole-v1', train_total_steps=100))\n"
        "r.write({'loss/policy': .5, 'loss/value': .25, 'update': 1, 'global_step': 50})\n"
        "r.say('a line above'); r.close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=theirs,
        env=os.environ | {"COLUMNS": "150", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "a line above" in text
    assert re.search(r"50%.*50/100.*ETA.*return -  policy \+0.5000 value 0.2500", text)
