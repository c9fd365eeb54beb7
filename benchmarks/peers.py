"""This project beside other PPO trainers, on the same work: `python benchmarks/peers.py`.

Each peer is installed from PyPI into a virtual environment of its own under `.peers/`, and runs an
environment by its own recipe; this project runs the same environments, epochs, minibatches and
networks, but for the flags of train.py that follow `--`: `peers.py --peers rl-games-ant -- --hidden_sizes 256 256`.
They take turns, A B A B, so that a noisy machine is noisy for both. Writes `<out>.md` and `<out>.json`. A peer
that cannot be installed or run is reported as such.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import runs

from common.sources import ROOT
from settings.config import ConfigError
from settings.sources import parse

FOLDER = ROOT / ".peers"
PROGRAMS = Path(__file__).resolve().parent / "peer_programs"


@dataclass(frozen=True)
class Peer:
    """Another trainer: what to install, what to run, and the same recipe as flags of train.py."""

    name: str
    """Of its virtual environment."""
    packages: tuple[str, ...]
    program: str
    """In `peer_programs/`, run by the peer's own Python, with the environment as its argument."""
    rate: str
    """Matches the steps/s in a line that the program prints."""
    flags: tuple[str, ...]
    env: str = "HalfCheetah-v4"


TORCH = "torch==2.13.0"
RL_GAMES = (
    "rl-games", (TORCH, "rl-games==1.6.5", "envpool==1.2.5"), "run_rl_games.py", r"fps total: (\d+)",
)  # fmt: skip
PEERS = {
    # its defaults but for 8 environments: 2,048 steps of each, minibatch 64, 10 epochs, 2 x 64 tanh
    "stable-baselines3": Peer(
        "stable-baselines3", (TORCH, "stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0",
                              "mujoco==3.14.0"),
        "run_stable_baselines3.py", r"rate (\d+)",
        ("--env_num", "8", "--batch_size", "16384", "--minibatch_size", "64", "--update_epochs",
         "10", "--hidden_sizes", "64", "64", "--no-normalize_observation", "--reward_transform",
         "none", "--no-recompute_advantages", "--learning_rate", "0.0003"),
    ),
    # its zoo's recipe for Atari, which is the preset: 8 x 128 steps, minibatch 256, 4 epochs, all cores
    "stable-baselines3-pong": Peer(
        "stable-baselines3-pong",
        (TORCH, "stable-baselines3==2.9.2", "gymnasium==1.4.0", "ale-py==0.12.1",
         "opencv-python-headless==4.13.0.92"),
        "run_stable_baselines3_pong.py", r"rate (\d+)", (), "PongNoFrameskip-v4",
    ),
    # configs/mujoco/halfcheetah_envpool.yaml: 64 x 256, minibatch 2048, 5 epochs, 128-64-32 elu
    "rl-games": Peer(
        *RL_GAMES,
        ("--env_num", "64", "--batch_size", "16384", "--minibatch_size", "2048", "--update_epochs",
         "5", "--hidden_sizes", "128", "64", "32", "--activation", "elu", "--shared_trunk",
         "--no-recompute_advantages", "--learning_rate", "0.0003"),
    ),
    # configs/mujoco/ant_envpool.yaml: 64 x 64, minibatch 2048, 4 epochs, 256-128-64 elu
    "rl-games-ant": Peer(
        *RL_GAMES,
        ("--env_num", "64", "--batch_size", "4096", "--minibatch_size", "2048", "--update_epochs",
         "4", "--hidden_sizes", "256", "128", "64", "--activation", "elu", "--shared_trunk",
         "--no-recompute_advantages", "--learning_rate", "0.0003", "--clip_from", "behaviour"),
        "Ant-v4",
    ),
    # configs/mujoco/humanoid_envpool.yaml: 64 x 64, minibatch 1024, 4 epochs, 512-256-128 elu
    "rl-games-humanoid": Peer(
        *RL_GAMES,
        ("--env_num", "64", "--batch_size", "4096", "--minibatch_size", "1024", "--update_epochs",
         "4", "--hidden_sizes", "512", "256", "128", "--activation", "elu", "--shared_trunk",
         "--no-recompute_advantages", "--learning_rate", "0.0003", "--value_learning_rate", "None"),
        "Humanoid-v4",
    ),
    # sf_examples/mujoco/mujoco_params.py: 64 environments, 4 batches of 1024, 2 epochs, 2 x 64 tanh
    "sample-factory": Peer(
        "sample-factory", (TORCH, "sample-factory==2.1.1", "gymnasium[mujoco]==0.29.1",
                           "mujoco==3.14.0"),
        "run_sample_factory.py", r"Fps is \(10 sec: ([\d.]+)",
        ("--env_num", "64", "--batch_size", "4096", "--minibatch_size", "1024", "--update_epochs",
         "2", "--hidden_sizes", "64", "64", "--no-recompute_advantages", "--learning_rate", "0.003"),
    ),
    # rl-baselines3-zoo's recipe for CartPole without velocities: 8 x 32, minibatch 256, 20 epochs. Its
    # LSTM, 256 wide, takes the observation and is under 2 x 64; this project's is over a layer of 256
    "sb3-contrib": Peer(
        "sb3-contrib", (TORCH, "sb3-contrib==2.9.2", "stable-baselines3==2.9.2"),
        "run_sb3_contrib.py", r"rate (\d+)",
        ("--network", "lstm", "--env_num", "8", "--batch_size", "256", "--minibatch_size", "256",
         "--update_epochs", "20", "--hidden_sizes", "256", "--no-recompute_advantages",
         "--learning_rate", "0.001", "--gamma", "0.98", "--gae_lambda", "0.8"),
        "CartPole-v1",
    ),
}  # fmt: skip


@dataclass
class Arguments:
    """Compare the speed of PPO trainers on this machine. Flags of train.py follow `--`."""

    peers: tuple[str, ...] = tuple(PEERS)
    """The peers to run."""
    seconds: float = 40.0
    """Seconds to measure, per turn, once a trainer has begun to report."""
    turns: int = 2
    """Turns of each."""
    out: Path = Path("benchmarks/results/peers")
    """Where to write, without the ending."""


class Failed(Exception):
    """A trainer cannot be installed or run; the message is the end of what it printed."""


def install(peer: Peer) -> Path:
    """The peer's Python, after installing the peer where that has not been done."""
    folder = FOLDER / peer.name
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.read_text() != " ".join(peer.packages):
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *peer.packages],
        ):
            finished = subprocess.run(command, capture_output=True, text=True)
            if finished.returncode:
                raise Failed("not installed: " + _last_line(finished.stderr))
        done.write_text(" ".join(peer.packages))
    return python


def measure(command: list[str], pattern: str, seconds: float, folder: Path) -> float:
    """Run a trainer for some seconds after its first report; the median of the later reports."""
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        first: float | None = None
        limit = time.monotonic() + 240 + seconds
        try:
            while time.monotonic() < limit and process.poll() is None:
                time.sleep(0.5)
                if first is None and re.search(pattern, log.read_text(errors="replace")):
                    first = time.monotonic()
                if first is not None and time.monotonic() - first > seconds:
                    break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    rates = [float(rate.replace(",", "")) for rate in re.findall(pattern, text)]
    if len(rates) < 2:
        raise Failed(
            f"reported {len(rates)} rates, but 2 are needed: give more --seconds; its last line:"
            f" {_last_line(text)}"
        )
    return statistics.median(rates[len(rates) // 4 :])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


@dataclass
class Row:
    """What was measured beside one peer, in steps/s, by turn."""

    peer: str
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    failure: str = ""

    def cells(self) -> tuple[str, str, str]:
        if self.failure:
            return "-", "-", self.failure
        theirs, ours = statistics.median(self.theirs), statistics.median(self.ours)
        return f"{theirs:,.0f}", f"{ours:,.0f}", f"{ours / theirs:.2f}"


def compare(peer: Peer, arguments: Arguments, flags: Sequence[str]) -> Row:
    row = Row(f"{peer.name}, {peer.env}")
    try:
        python = str(install(peer))
        for turn in range(arguments.turns):
            with tempfile.TemporaryDirectory() as folder:
                command = [python, str(PROGRAMS / peer.program), peer.env]
                row.theirs.append(measure(command, peer.rate, arguments.seconds, Path(folder)))
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-u", str(ROOT / "train.py"), "--env", peer.env,
                           "--train_total_steps", "100000000", "--test_share", "1", "--run_dir",
                           str(Path(folder) / "run"), *peer.flags, *flags]  # fmt: skip
                row.ours.append(
                    measure(command, r"([\d,]+) steps/s", arguments.seconds, Path(folder))
                )
            print(f"{peer.name}, turn {turn + 1}: {row.theirs[-1]:,.0f} steps/s; this project"
                  f" {row.ours[-1]:,.0f}", flush=True)  # fmt: skip
    except Failed as failure:
        row.failure = str(failure)
        print(f"{peer.name}: {failure}", flush=True)
    return row


def write(rows: list[Row], arguments: Arguments, flags: Sequence[str]) -> str:
    changed = f" This project with {' '.join(flags)}." if flags else ""
    machine = f"{runs.machine()}, {date.today()}"
    lines = [
        "# By other trainers' recipes, steps/s", "",
        f"{machine}; medians of {arguments.turns} turns of {arguments.seconds:.0f} s, taken in turn.{changed}",
        "", "| trainer and its recipe | it | this project | ratio |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {row.peer} | {' | '.join(row.cells())} |" for row in rows]
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    content: dict[str, Any] = {
        "machine": machine,
        "flags": list(flags),
        "rows": [vars(row) for row in rows],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return text


def main() -> None:
    with runs.command("peers.py"):
        arguments, flags = runs.typed(Arguments)
        runs.refuse_counts(arguments, "peers", "turns")
        unknown = sorted(set(arguments.peers) - set(PEERS))
        if unknown:
            raise ConfigError(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
        runs.refuse(flags, {"env": "--peers", "train_total_steps": "--seconds"})
        peers = [PEERS[name] for name in arguments.peers]
        for peer in peers:
            parse(["--env", peer.env, *peer.flags, *flags])
        print(write([compare(peer, arguments, flags) for peer in peers], arguments, flags))


if __name__ == "__main__":
    main()
