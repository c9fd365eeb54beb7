from __future__ import annotations

import itertools
import json
import re
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

import plot
from evaluation.curves import Curve, band, curves_of, read
from settings.config import Config, ConfigError
from settings.experiments import group
from tests.conftest import run_command

FIVE = ("learning_rate", "gae_lambda", "clip_range", "entropy_coefficient", "hidden_sizes")


def write_run(folder, returns, command=None, env="CartPole-v1", **settings):
    folder.mkdir()
    config = Config(env=env, **settings)
    content = {"config": config.to_dict()} | ({"command": command} if command else {})
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    lines = [
        json.dumps({
            "update": i + 1, "global_step": 10_000 * (i + 1), "time_s": 90.0 * (i + 1),
            "episode_return_mean": r, "entropy": 1 / (i + 1),
        })
        for i, r in enumerate(returns)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def longest_dark_line(path):
    """The longest run of dark pixels in a row of a picture, as a share of its width: an axis."""
    pixels = np.asarray(Image.open(path).convert("L")) < 60
    runs = [len(list(same)) for row in pixels for dark, same in itertools.groupby(row) if dark]
    return max(runs) / pixels.shape[1]


def test_seeds_become_a_mean_and_a_95_percent_band():
    curves = [Curve(np.array([0.0, 100.0]), np.array([0.0, v])) for v in (10.0, 12.0, 14.0)]
    x, (mean, low, high) = band(curves)
    assert (x[-1], mean[-1]) == (100.0, 12.0)
    assert high[-1] - mean[-1] == pytest.approx(4.3027 * 2.0 / np.sqrt(3), rel=1e-4)
    assert mean[-1] - low[-1] == pytest.approx(4.3027 * 2.0 / np.sqrt(3), rel=1e-4)
    assert np.isnan(band(curves[:1])[1].low).all()


def test_runs_are_grouped_by_what_differs_except_the_seed(tmp_path):
    folders = [
        write_run(tmp_path / "a", [1, 2], seed=1), write_run(tmp_path / "b", [3, 4], seed=2),
        write_run(tmp_path / "c", [5, 6], seed=1, gamma=0.5),
        write_run(tmp_path / "d", [7, 8], seed=2, gamma=0.5, samplers=2, test_episodes=3),
    ]  # fmt: skip
    lines = group(folders)["CartPole-v1"]
    assert lines == {"gamma 0.99": folders[:2], "gamma 0.5": folders[2:]}
    more = [write_run(tmp_path / "e", [1, 2], seed=3, straggler_share=0.5, policy_lag=1)]
    assert len(group([*folders[:2], *more])["CartPole-v1"]) == 2  # it learns from other rows
    named = group(folders, ["long horizon", "short horizon"])["CartPole-v1"]
    assert named == {"long horizon": folders[:2], "short horizon": folders[2:]}


def test_a_label_leaves_out_what_follows_from_the_other_settings(tmp_path):
    flags = ["train.py", "--env-num=60", "--target_kl", "0.1"]
    follows = {"env_num": 60, "batch_size": 2040, "minibatch_size": 255, "target_kl": 0.1}
    small = write_run(tmp_path / "a", [1, 2], ["train.py"], env_num=64)
    assert list(group([small, write_run(tmp_path / "b", [1, 2], flags, **follows)])["CartPole-v1"]) == [
        "env_num 64", "env_num 60, target_kl 0.1"
    ]  # fmt: skip
    # two labels would be the same, and a file of settings may have named any of them
    same = write_run(tmp_path / "c", [1, 2], flags, gamma=0.5, **follows)
    (shown,) = (label for label, runs in group([small, same, tmp_path / "b"])["CartPole-v1"].items()
                if runs == [same])  # fmt: skip
    assert {"gamma 0.5", "batch_size 2040", "minibatch_size 255"} <= set(shown.split(", "))
    file = write_run(
        tmp_path / "d", [1, 2], ["train.py", "--config", "x.yaml"], gamma=0.5, env_num=64
    )
    assert list(group([small, file])["CartPole-v1"]) == ["gamma 0.99", "gamma 0.5"]


def test_a_resumed_runs_later_lines_replace_those_it_overtook(tmp_path):
    folder = write_run(tmp_path / "a", [1, 2, 3])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '\n{"update": 2, "global_step": 20000, "episode_return_mean": 9}\n{"update": 3, "gl'
        )
    np.testing.assert_array_equal(read(folder).value, [1, 9])  # the 3 is of weights that were left


def test_an_evaluation_that_a_resumed_run_overtook_is_not_drawn(tmp_path):
    folder = write_run(tmp_path / "a", [1])
    lines = [(2, 20_000, 10_000, 5.0), (3, 30_000, 20_000, 99.0), (2, 20_000, 0, 0), (3, 30_000, 0, 0),
             (4, 40_000, 30_000, 6.0)]  # fmt: skip
    with open(folder / "metrics.jsonl", "a") as file:
        for update, step, of, mean in lines:
            line: dict[str, float] = {"update": update, "global_step": step}
            if of:
                line |= {"eval/global_step": of, "eval/return_mean": mean}
            file.write("\n" + json.dumps(line))
    curve = read(folder, "eval/return_mean")
    assert (curve.x.tolist(), curve.value.tolist()) == ([10_000, 30_000], [5, 6])


def test_an_evaluation_that_stays_comes_before_later_ones_though_its_line_is_later(tmp_path):
    folder = write_run(tmp_path / "a", [])
    # update, and the steps of the weights whose evaluation ended then; the run is resumed from update 5
    lines = [*((update, None) for update in range(1, 9)), (9, 500), (6, None), (7, None), (8, 700)]
    with open(folder / "metrics.jsonl", "a") as file:
        for update, of in lines:
            line = {"update": update, "global_step": 100 * update, "time_s": 10.0 * update}
            if of:
                line |= {"eval/global_step": of, "eval/return_mean": of / 10}
            file.write(json.dumps(line) + "\n")
    assert read(folder, "eval/return_mean").x.tolist() == [500, 700]
    curve = read(folder, "eval/return_mean", "time")
    # where update 5 ended, as its line was overtaken
    assert (curve.x.tolist(), curve.value.tolist()) == ([50, 80], [50, 70])


def test_an_evaluation_is_drawn_at_the_steps_of_its_weights(tmp_path):
    folder = write_run(tmp_path / "a", [1, 2])
    late = {"update": 3, "global_step": 30_000, "time_s": 270.0, "eval/return_mean": 7.0}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("\n" + json.dumps(late | {"eval/global_step": 20_000}))
    assert read(folder, "eval/return_mean") == (20_000, 7)
    assert read(folder, "eval/return_mean", "time") == (270, 7)


def test_a_folder_that_is_given_twice_counts_once_and_a_seed_of_two_runs_is_named(tmp_path, capsys):
    one, two = write_run(tmp_path / "a", [1, 2]), write_run(tmp_path / "b", [1, 2])
    again = one.parent / "b" / ".." / "a"
    assert group([one, again])["CartPole-v1"] == {"PPO": [again]}
    plot.plot(plot.Arguments([one, two], tmp_path / "curves.png"))
    assert "PPO has more than one run of seed 1" in capsys.readouterr().err
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="loop is not the folder of a run"):
        group([loop])


def test_a_policy_without_its_run_has_no_metrics_to_draw(tmp_path):
    folder = write_run(tmp_path / "a", [1, 2])
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl: a run writes it"):
        read(folder)


def test_a_run_without_episodes_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no episode has ended yet, train for longer"):
        read(write_run(tmp_path / "a", [None]))


def test_a_run_without_an_update_is_said(tmp_path):
    folder = write_run(tmp_path / "a", [1])
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="has both episode_return_mean and global_step"):
        plot.plot(plot.Arguments([folder], tmp_path / "curves.png"))


def test_the_command_draws_a_picture_and_prints_the_final_values(tmp_path):
    runs = [
        write_run(tmp_path / f"{gamma}{seed}", [0, 4, value], seed=seed, gamma=gamma)
        for gamma, values in ((0.99, (1000, 1200, 1400)), (0.5, (1300, 1500, 1700)))
        for seed, value in enumerate(values)
    ]
    out = tmp_path / "curves.png"
    done = run_command("plot.py", *map(str, runs), "--out", str(out), "--line", r"$\x$, a paper 2383",
                       "--metrics", "episode_return_mean", "entropy", "--aggregate", "iqm")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    assert lines[0] == ["CartPole-v1, mean training return, final value"]
    assert lines[2] == ["gamma 0.99", "1,200", "1,000 to 1,400", "3", "-", "-"]
    assert [*lines[3][:5], lines[3][5][-4:]] == [
        "gamma 0.5", "1,500", "1,300 to 1,700", "3", "0.8889", "to 1"
    ]  # fmt: skip
    assert (lines[4][0], lines[-1]) == ("CartPole-v1, entropy, final value", [str(out)])
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_one_metric_may_be_given_as_before_and_svg_holds_the_words(tmp_path):
    runs = [
        write_run(tmp_path / env, [1, 2, 3, 4], env=env) for env in ("CartPole-v1", "Acrobot-v1")
    ]
    out = tmp_path / "curves.svg"
    done = run_command("plot.py", *map(str, runs), "--metric", "entropy", "--x", "time",
                       "--line", "Acrobot-v1 a paper 0.7", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = re.findall(r"<!-- (.+?) -->", out.read_text())
    assert {"CartPole-v1", "Acrobot-v1", "entropy", "minutes", "PPO (1\u00a0seed)"} <= set(words)
    assert words.count("a paper: 0.7") == 1


@pytest.mark.parametrize(
    ("steps", "arguments", "drawn"),
    [
        (2_000_000, {}, ["best public PPO after 1,000,000 steps: 5,784"]),
        (3_000_000, {"x": "time"}, ["best public PPO after 3,000,000 steps: 7,337"]),
        (999_999, {}, []),  # however long it was to be
        (3_000_000, {"published": False}, []),
        (3_000_000, {"metrics": ("entropy",)}, []),
    ],
)
def test_the_best_published_figure_of_runs_so_long_is_drawn(steps, arguments, drawn, tmp_path):
    run = write_run(tmp_path / "a", [1, 2], env="HalfCheetah-v4", train_total_steps=10_000_000)
    with open(run / "metrics.jsonl", "a") as file:
        line = {"update": 3, "global_step": steps, "time_s": 270.0, "entropy": 0.1}
        file.write("\n" + json.dumps(line | {"episode_return_mean": 3.0}))
    plot.plot(plot.Arguments([run], tmp_path / "curves.svg", **arguments))
    words = re.findall(r"<!-- (.+?) -->", (tmp_path / "curves.svg").read_text())
    assert [line for line in words if line.startswith("best public")] == drawn


def test_long_labels_leave_the_axes_their_room(tmp_path):
    values = itertools.product(
        *[[(1, 1), (2, 2)] if n == "hidden_sizes" else [0.1, 0.2] for n in FIVE]
    )
    runs = [
        write_run(tmp_path / str(i), [0, i], **dict(zip(FIVE, value, strict=True)))
        for i, value in zip(range(12), values, strict=False)
    ]
    panels = curves_of(group(runs))
    assert len(panels.columns["CartPole-v1"]) == 12
    plot.draw([panels], tmp_path / "curves.png")
    assert longest_dark_line(tmp_path / "curves.png") > 0.8


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["/nowhere"], "/nowhere is not the folder of a run"),
        (["RUN", "--out", "curves.jpeg"], r"curves\.jpeg must be a \.png or \.svg file"),
        (["RUN", "--out", "/nowhere/curves.png"], r"/nowhere/curves\.png cannot be written"),
        (["RUN", "--metric", "nothing"], "has no metric 'nothing': give one of .*global_step"),
        ([], "run_dirs has nothing to draw"),
        (["RUN", "--metrics"], "metrics has nothing to draw"),
        (["RUN", "--line", "cleanrl"], "line is 'cleanrl', but must be a name and a number"),
        (["RUN", "--line", "cleanrl inf"], "line is 'cleanrl inf', but must be"),
        (["RUN", "--line", "2383"], "line is '2383', but must be a name and a number"),
        (["RUN", "--line", "CartPole-v1 500"], "line is 'CartPole-v1 500', but must be a name"),
        (["RUN", "--labels", "a", "b"], "labels are a, b, but CartPole-v1 has 1 experiments"),
        (["RUN", "--labels", " "], "but one is empty: give each a name"),
        (["RUN", "--aggregate", "iqm"], "aggregate iqm needs 3 seeds or more, but PPO has 1"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, tmp_path, capsys, monkeypatch):
    run_dir = str(write_run(tmp_path / "a", [1, 2]))
    command = ["plot.py", *[run_dir if argument == "RUN" else argument for argument in arguments]]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        plot.main()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.match(f"plot.py: .*{complaint}", printed)
