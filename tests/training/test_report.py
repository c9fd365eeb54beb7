from __future__ import annotations

import json
import re
from pathlib import Path

from rollout import Episode
from settings.config import Config
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
    line = r"{}  ETA {}  [\d,]+ steps/s  return {}  policy -0.5000 value 0.2500"
    assert re.fullmatch(line.format("10/100 steps  10%", r"0:\d\d:\d\d", "-"), printed[0])
    assert re.fullmatch(line.format("100/100 steps 100%", "0:00:00", "15.0"), printed[1])


def test_what_is_said_is_kept_in_the_run_folder(tmp_path, capsys):
    report = make(tmp_path)
    report.say("sampler 1 is lost: why\nanother sampler 1 is starting")
    report.close()
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}(-\d\d){2} \d\d(:\d\d){2} sampler 1 is lost: why", first)
    assert second == "another sampler 1 is starting"
    assert "sampler 1 is lost: why" in capsys.readouterr().out


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
