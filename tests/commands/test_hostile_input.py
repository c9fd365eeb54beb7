"""Whatever is read from outside is read, or refused in a sentence: never a traceback, never a hang.

Inputs that are right are mutated: bytes of all formats, and the structure of those that have one.
`FUZZ_CASES=10000` makes more cases of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import wire
from cluster.pool import Lost
from cluster.session import read_answer
from common import checkpoint
from common.errors import UserError
from evaluation.curves import read
from evaluation.follow import Checkpoints
from evaluation.load import load_policy
from model import build_model
from settings.config import FIELDS, Config
from settings.sources import load_run, parse
from tests.cluster.sealed import sealed
from train import check
from training.folder import run_folder

CASES = int(os.environ.get("FUZZ_CASES", "300"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(max(240, CASES))]
fuzzed = settings(
    max_examples=CASES, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.sampled_from([2**31, 2**63, 2**64, 10**400, -(2**63)]),
    st.floats(), st.sampled_from([0.5, 1e300, 1e-300]),
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=12), NUMBERS.map(lambda number: str(number)[:500]),
    st.sampled_from(["", "-", "--", "null", "None", "true", "nan", "inf", "1e9", "auto", "on", "../..",
                     "lstm", "transformer", "CartPole-v1", "\0", "{}", "[", "a:b", ":", "é" * 300]),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them changed, left out, repeated or put between others."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["flip", "cut", "end", "repeat", "insert"]))
        if kind == "flip" and start < len(content):
            content[start] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del content[start:end]
        elif kind == "end":
            del content[start:]
        elif kind == "repeat":
            content[start:start] = content[start:end] * draw(st.integers(1, 50))
        else:
            content[start:start] = draw(st.binary(max_size=20))
    return bytes(content)


@st.composite
def restructured(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of lists and dicts in which something, somewhere, is something else."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(tree)))
        if not draw(st.integers(0, 5)):
            return {n: v for n, v in tree.items() if n != name}
        return {**tree, name: draw(restructured(tree[name]))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(tree) - 1))
        return [*tree[:index], draw(restructured(tree[index])), *tree[index + 1 :]]
    return draw(JSON)


def in_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def refused_or_done(action: Callable[[], object]) -> None:
    """Anything but a `UserError`, which commands print as one line, ends the test."""
    told = "done"
    try:
        action()
    except UserError as error:
        told = str(error)
    assert told
    assert len(told) < 20_000


MESSAGE = wire.pack(
    {"episodes": [[1, 0, 2.0, 3, {}]]}, {"rollout/obs": np.arange(6.0), "b": np.ones((2, 2), bool)}
)
HEADER_END = 16 + int.from_bytes(MESSAGE[8:12], "little")
HEADER = json.loads(MESSAGE[16:HEADER_END])


def with_header(header: Any) -> bytes:
    content = in_json(header)
    start = MESSAGE[:8] + len(content).to_bytes(4, "little") + bytes(4) + content
    return sealed(start + bytes(-len(start) % 64) + MESSAGE[-128:])


@fuzzed
@given(
    mutated(MESSAGE)
    | mutated(MESSAGE).map(sealed)
    | restructured(HEADER).map(with_header)
    | st.binary(max_size=200)
)
def test_messages(message: bytes):
    with contextlib.suppress(wire.WireError):
        meta, arrays = wire.unpack(message)
        assert isinstance(meta, dict)
        assert all(array.nbytes <= len(message) for array in arrays.values())
    with contextlib.suppress(Lost):
        read_answer(message)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with a checkpoint that fits it."""
    from agent import make_agent

    folder = tmp_path_factory.mktemp("runs") / "run"
    config = Config(env="CartPole-v1", hidden_sizes=(8,), run_dir=str(folder))
    with run_folder(config):
        pass
    agent = make_agent(config)
    arrays, state = agent.state()
    state |= {"global_step": 0, "best": None, "last_evaluation": None, "behaviour_version": 0}
    checkpoint.save(folder / "checkpoints", 1, arrays, state)
    return folder


@contextlib.contextmanager
def copied(folder: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, symlinks=True)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


@fuzzed
@given(data=st.data())
def test_checkpoints(data: st.DataObject, run_dir, tmp_path):
    """With hashes that do not fit, and, as somebody may mean harm, with some that do."""
    with copied(run_dir, tmp_path) as folder:
        saved = folder / "checkpoints" / "update-00000001"
        name = data.draw(st.sampled_from([*checkpoint.FILES, "manifest.json"]))
        content = (saved / name).read_bytes()
        if name.endswith(".json") and data.draw(st.booleans()):
            content = in_json(data.draw(restructured(json.loads(content))))
        else:  # most of the file's bytes are numbers, which may be any
            content = data.draw(mutated(content[:900])) + content[900:]
        (saved / name).write_bytes(content)
        if name != "manifest.json" and data.draw(st.booleans()):
            digests = {
                n: hashlib.sha256((saved / n).read_bytes()).hexdigest() for n in checkpoint.FILES
            }
            (saved / "manifest.json").write_bytes(in_json({"sha256": digests}))
        refused_or_done(lambda: checkpoint.load(saved))
        refused_or_done(lambda: load_policy(folder))
        Checkpoints(folder, build_model(load_run(run_dir)), print).newer()  # says what it refuses


SETTINGS = yaml.safe_dump({
    "env": "CartPole-v1", "env_num": 4, "batch_size": 64, "minibatch_size": 32, "network": "mlp",
    "hidden_sizes": [8, 8], "learning_rate": 3e-4, "seed": 1, "test_episodes": 1, "samplers": 0,
}).encode()  # fmt: skip


def parse_and_check(words: list[str]) -> None:
    config = parse(words)
    if config.env == "CartPole-v1" and config.xparl_addr is None:
        check(config)


@fuzzed
@given(mutated(SETTINGS) | restructured(yaml.safe_load(SETTINGS)).map(in_json) |
       st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=3).map(in_json))  # fmt: skip
def test_settings_files(tmp_path, content: bytes):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    refused_or_done(lambda: parse_and_check(["--config", str(path), "--env", "CartPole-v1"]))


FLAGS = st.sampled_from(sorted(FIELDS - {"xparl_addr"})).map("--{}".format)


@fuzzed
@given(st.lists(FLAGS | WORDS | st.builds("{}={}".format, FLAGS, WORDS), max_size=6))
def test_flags(tmp_path, words: list[str]):
    if {"-h", "--help"} & set(words):
        return
    with contextlib.chdir(tmp_path):
        refused_or_done(lambda: parse_and_check(words))


@fuzzed
@given(data=st.data())
def test_run_folders(data: st.DataObject, run_dir, tmp_path):
    with copied(run_dir, tmp_path) as folder:
        content = (folder / "config.yaml").read_bytes()
        resumes = [{"config": {"train_total_steps": 5}, "command": []}]
        if data.draw(st.booleans()):
            text = data.draw(mutated(in_json(resumes)) | restructured(resumes).map(in_json))
            (folder / "resumes.yaml").write_bytes(text)
        else:
            text = data.draw(mutated(content) | restructured(yaml.safe_load(content)).map(in_json))
            (folder / "config.yaml").write_bytes(text)
        kind = data.draw(st.sampled_from(["", "", "", "file", "folder", "link"]))
        place = folder / data.draw(st.sampled_from(["config.yaml", "checkpoints", "resumes.yaml"]))
        if kind:
            if place.is_dir():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)
        if kind == "file":
            place.write_bytes(data.draw(st.binary(max_size=9)))
        elif kind == "folder":
            place.mkdir()
        elif kind == "link":
            place.symlink_to(place)
        refused_or_done(lambda: load_run(folder))
        refused_or_done(lambda: parse_and_check(["--resume", str(folder)]))
        refused_or_done(lambda: load_policy(folder))


LINES = [{"update": n, "global_step": 10 * n, "episode_return_mean": 1.5 * n} for n in range(3)]
METRICS = b"".join(in_json(line) + b"\n" for line in LINES)


@pytest.mark.parametrize("name", ["metrics.jsonl", "followed.jsonl"])
@fuzzed
@given(mutated(METRICS) | st.lists(st.sampled_from(LINES).flatmap(restructured).map(in_json), max_size=3)
       .map(b"\n".join))  # fmt: skip
def test_metrics(tmp_path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    refused_or_done(lambda: read(tmp_path))
