from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from common.randomness import stream
from envs import make_vec_env
from evaluation.export import BadExport, export
from evaluation.load import load_policy
from evaluation.play import play
from model import ActorCritic, build_model
from settings.config import Config
from settings.sources import preset
from tests.conftest import ROOT, run_command
from tests.test_house import FLOORS

EPISODES = 20
INPUTS = ("obs", "action_mask")


def config_of(env: str, **settings: Any) -> Config:
    config = preset(env)
    config.test_max_steps = 60
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def lively(model: ActorCritic) -> ActorCritic:
    """The model with a head that chooses, and with a normaliser that has seen observations."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy_head.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        shape = model.spaces.observation.shape
        model.update_normalizer(0.1 + 0.5 * torch.randn(64, *shape, generator=generator))
    return model


def recorded(model: ActorCritic, config: Config) -> dict[str, np.ndarray]:
    """What evaluate.py's loop plays: obs [T, N, ...], action, playing, and action_mask if any."""
    venv = make_vec_env(config.env, EPISODES, **config.evaluation_options(range(EPISODES)))
    given: dict[str, list[np.ndarray]] = {"obs": [], "action_mask": []}
    act = model.act

    def watched(obs: np.ndarray, noise: Any, mask: np.ndarray | None, state: Any) -> Any:
        public = obs.shape[-1] - model.spaces.privileged
        # as a file takes them: images as bytes, all else as floats
        given["obs"].append(obs[..., :public].astype(np.uint8 if obs.ndim == 4 else np.float32))
        if mask is not None:
            given["action_mask"].append(mask.copy())
        return act(obs, noise, mask, state)

    model.act = watched
    with contextlib.closing(venv):
        obs, _ = venv.reset(seed=list(range(EPISODES)))
        steps = list(
            play(model, venv, obs, stream("evaluation", 0, 0), True, config.test_max_steps)
        )
    del model.act
    given["action"] = [step.action for step in steps]
    given["playing"] = [step.playing for step in steps]
    return {name: np.stack(arrays) for name, arrays in given.items() if arrays}


def compare(actions: np.ndarray, played: dict[str, np.ndarray]) -> None:
    """Equal where they are discrete, alike where they are floats, in all steps of all episodes."""
    playing, wanted = played["playing"], played["action"]
    assert actions.dtype == wanted.dtype
    assert actions.shape == wanted.shape
    if wanted.dtype == np.float32:
        np.testing.assert_allclose(actions[playing], wanted[playing], rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(actions[playing], wanted[playing])
    assert len(np.unique(wanted[playing])) > 1, "a policy that does one thing shows nothing"


def alone(path: Path, played: dict[str, np.ndarray]) -> np.ndarray:
    """The actions that onnxruntime chooses where neither torch nor the project can be imported."""
    episodes, answers = path.with_suffix(".npz"), path.with_suffix(".npy")
    np.savez(episodes, allow_pickle=False, **played)
    script = Path(__file__).parent / "plays_alone.py"
    files = [str(file) for file in (path, episodes, answers)]
    done = run_command(str(script), *files, "torch", "parl", *FLOORS, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return np.load(answers)


def by_torch(path: Path, played: dict[str, np.ndarray], state_size: int) -> np.ndarray:
    """The actions of a program of torch.export, in batches of 1 and of all others."""
    policy: Any = torch.export.load(path).module()
    given = {name: torch.from_numpy(played[name]) for name in played if name in INPUTS}
    batches = []
    for rows in (slice(0, 1), slice(1, EPISODES)):
        state = {"state": torch.zeros(EPISODES, state_size)[rows]} if state_size else {}
        actions = []
        for t in range(len(played["obs"])):
            outputs = policy(**{name: array[t, rows] for name, array in given.items()}, **state)
            state = {"state": outputs["next_state"]} if state_size else {}
            actions.append(outputs["action"].numpy())
        batches.append(np.stack(actions))
    return np.concatenate(batches, 1)


POLICIES = {
    "normal": config_of("Pendulum-v1", normalize_observation=True),
    "scaled": config_of("Pendulum-v1", scale_action=True, state_dependent_std=True),
    "tanh_normal": config_of("Pendulum-v1", distribution="tanh_normal"),
    "beta": config_of("Pendulum-v1", distribution="beta"),
    "categorical": config_of("CartPole-v1", normalize_observation=True, activation="silu"),
    "noisy": config_of("CartPole-v1", noisy_layers=True),
    "privileged": config_of("tests.toy_envs:Hidden", normalize_observation=True),
    "masked": config_of("tests.toy_envs:Masked"),
    "lstm": config_of("CartPole-v1", network="lstm", normalize_observation=True),
    "bytes": config_of("tests.image_envs:Bytes", noisy_layers=True),
    "own": config_of("CartPole-v1", network="tests.networks.own:Average"),
    "transformer": config_of("CartPole-v1", network="transformer", memory_steps=4),
    "cnn": config_of("PongNoFrameskip-v4", test_max_steps=30),
    "impala": config_of("PongNoFrameskip-v4", network="impala", test_max_steps=10),
    "gridnet": config_of("microrts-4x4"),
    "gridnet_cnn": config_of("microrts-4x4", network="gridnet_cnn"),
    "unit_selection": config_of("microrts-4x4", policy="unit_selection", network="impala"),
}


# what torch.export makes is what ONNX is made of: one policy of each kind will do
PROGRAMS = {"normal", "categorical", "masked", "lstm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_an_exported_policy_plays_as_evaluate_does_without_torch_and_without_the_project(
    name, tmp_path
):
    config = POLICIES[name]
    model = lively(build_model(config))
    played = recorded(model, config)
    onnx_file, program = tmp_path / "policy.onnx", tmp_path / "policy.pt2"
    export(model, config, onnx_file)
    compare(alone(onnx_file, played), played)
    if name in PROGRAMS:
        export(model, config, program)
        compare(by_torch(program, played, sum(model.state_sizes[:1])), played)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_trained_policy_is_as_good_in_a_program_that_has_its_file_alone(env, tmp_path):
    policy = load_policy(ROOT / "pretrained" / env)
    file = tmp_path / "policy.onnx"
    export(policy.model, policy.config, file)
    script = Path(__file__).parent / "plays_whole_episodes.py"
    refused = ("torch", "parl", *FLOORS)
    done = run_command(str(script), str(file), env, str(EPISODES), *refused, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    venv, returns = make_vec_env(env, EPISODES), np.zeros(EPISODES)
    obs, _ = venv.reset(seed=list(range(EPISODES)))
    for step in play(policy.model, venv, obs, stream("evaluation", 0), True, limit=1000):
        returns += np.where(step.playing, step.reward, 0.0)
    np.testing.assert_allclose(json.loads(done.stdout), returns, rtol=0.01, atol=0.5)


@pytest.mark.parametrize(
    ("name", "takes", "gives"),
    [
        (
            "lstm",
            {"obs": ("tensor(float)", ["N", 4]), "state": ("tensor(float)", ["N", 128])},
            {"action": ("tensor(int64)", ["N"]), "next_state": ("tensor(float)", ["N", 128])},
        ),
        (
            "masked",
            {"obs": ("tensor(float)", ["N", 2]), "action_mask": ("tensor(bool)", ["N", 5])},
            {"action": ("tensor(int64)", ["N", 2])},
        ),
    ],
)
def test_inputs_and_outputs_have_their_names_and_shapes(name, takes, gives, tmp_path):
    path = tmp_path / "new" / "policy.onnx"
    export(build_model(POLICIES[name]), POLICIES[name], path)
    assert [file.name for file in path.parent.iterdir()] == ["policy.onnx"]
    session = onnxruntime.InferenceSession(path)
    for places, wanted in ((session.get_inputs(), takes), (session.get_outputs(), gives)):
        assert {place.name: (place.type, place.shape) for place in places} == wanted


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    config = POLICIES["categorical"]
    model = build_model(config)
    with pytest.raises(BadExport, match=r"policy\.txt must be .*ends with \.onnx or \.pt2"):
        export(model, config, tmp_path / "policy.txt")
    (tmp_path / "file").touch()
    with pytest.raises(BadExport, match="cannot be written"):
        export(model, config, tmp_path / "file" / "policy.pt2")
    own = config_of("CartPole-v1", network="tests.networks.own:Bessel")
    with pytest.raises(BadExport, match=r"own:Bessel cannot be put .*bessel_j0.*ends with \.pt2"):
        export(build_model(own), own, tmp_path / "own.onnx")
    own = config_of("CartPole-v1", network="tests.networks.own:Branches")
    with pytest.raises(BadExport, match=r"network tests\.networks\.own:Branches cannot be traced"):
        export(build_model(own), own, tmp_path / "own.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BadExport, match=r"needs onnxscript.*`make export`.*ends with \.pt2"):
        export(model, config, tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()
