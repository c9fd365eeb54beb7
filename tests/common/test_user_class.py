"""The user's modules and the project's have the same names here, and neither hides the other's."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import gymnasium
import pytest

from common import user_class
from common.errors import UserError
from common.user_class import find, sources_in_use
from tests.conftest import ROOT, run_command

ENVIRONMENT = """
import dataclasses, pickle
import gymnasium, numpy as np
import model, config as settings
import parts.deep as deep
from errors import Mine
from model import Simulator
from parts import shallow
from rollout import Rollout

@dataclasses.dataclass
class Options:
    size: "int" = 1

class MyEnv(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        assert pickle.loads(pickle.dumps(Options())) == Options()
        assert (settings.NAME, model.Simulator, deep.NAME) == ("mine", Simulator, "deep")
        assert issubclass(Mine, RuntimeError)

    def reset(self, *, seed=None, options=None):
        import agent
        super().reset(seed=seed)
        self.simulator = Simulator(agent.LIMIT)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), shallow.REWARD, False, self.simulator.step(), {}
"""
MODULES = {
    "model.py": "class Simulator:\n    def __init__(self, limit):\n        self.left = limit\n"
    "    def step(self):\n        self.left -= 1\n        return self.left == 0\n",
    "config.py": "NAME = 'mine'\n",
    "agent.py": "LIMIT = 5\n",
    "errors.py": "class Mine(RuntimeError): pass\n",
    "algorithm.py": "raise RuntimeError('never imported')\n",
    "random.py": "raise RuntimeError('never imported')\n",
    "my_network.py": "from model import Simulator\nfrom torch import nn\n\n"
    "class Net(nn.Sequential):\n    def __init__(self, obs_shape):\n"
    "        super().__init__(nn.Linear(*obs_shape, 4), nn.Tanh())\n",
    "parts/__init__.py": "from . import deep\n",
    "parts/deep.py": "from config import NAME as NOT_MINE\nNAME = 'deep'\n",
    "parts/shallow.py": "from parts.deep import NAME\nREWARD = 2.0\n",
}


def write_users_folder(folder: Path) -> None:
    for name, content in MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (folder / "my_env.py").write_text(ENVIRONMENT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, worked in, whose modules have names of this project's."""
    write_users_folder(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_modules_of_one_name_are_there(folder):
    import model as of_the_project

    env_class = find("env", "my_env:MyEnv", UserError)
    env = env_class()
    env.reset()
    assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]
    assert sys.modules["model"] is of_the_project
    assert hasattr(of_the_project, "ActorCritic")
    # a name that only the project has is the project's
    from rollout import Rollout

    assert sys.modules[env_class.__module__].Rollout is Rollout
    assert issubclass(env_class, gymnasium.Env)
    assert pickle.loads(pickle.dumps(env_class)) is env_class


def test_a_module_may_have_the_name_of_the_projects(folder):
    (folder / "envs.py").write_text(ENVIRONMENT)
    assert find("env", "envs:MyEnv", UserError)().observation_space.shape == (1,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_env:Missing", "my_env has no 'Missing'"),
        ("missing:MyEnv", "there is no module 'missing' here or on PYTHONPATH"),
        ("parts.missing:MyEnv", "there is no module 'parts.missing' here"),
        ("needs:MyEnv", "needs cannot be imported: No module named 'need'"),
        ("data.missing:MyEnv", "there is no module 'data.missing' here"),
        ("my_env:", "is not module:Class"),
        (":MyEnv", "is not module:Class"),
        ("./my_env.py:MyEnv", "is not module:Class"),
    ],
)
def test_what_cannot_be_found_is_said(folder, name, message):
    (folder / "needs.py").write_text("import need\n")
    with pytest.raises(UserError, match=message):
        find("env", name, UserError)


def test_an_error_within_the_users_module_stays_as_it_is(folder):
    (folder / "broken.py").write_text("import sys\nsys.missing\n")
    with pytest.raises(AttributeError, match="missing"):
        find("env", "broken:MyEnv", UserError)


def test_the_projects_own_root_is_no_users_folder(monkeypatch):
    from tests import toy_envs

    monkeypatch.chdir(ROOT)
    assert find("env", "tests.toy_envs:Counter", UserError) is toy_envs.Counter
    assert sources_in_use() == {}


def test_a_module_of_the_path_is_imported_in_the_ordinary_way(
    folder, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "on_the_path.py").write_text("from model import ActorCritic\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    from model import ActorCritic

    assert find("network", "on_the_path:ActorCritic", UserError) is ActorCritic
    assert sources_in_use() == {}


def test_the_modules_that_a_run_may_need_are_sent(folder):
    (folder / ".#open_in_emacs.py").symlink_to("nowhere")
    (folder / "dangling.py").symlink_to("nowhere")
    (folder / "a_folder.py").mkdir()
    (folder / "not-a-module.py").write_text("")
    (folder / "other").mkdir()
    (folder / "other" / "__init__.py").write_text("")
    assert sources_in_use() == {}  # nothing of this folder is in use
    find("env", "my_env:MyEnv", UserError)
    expected = {*MODULES, "my_env.py"}
    files = sources_in_use()
    assert set(files) == expected
    assert files["config.py"] == MODULES["config.py"].encode()


def test_a_huge_folder_is_refused(folder, monkeypatch):
    find("env", "my_env:MyEnv", UserError)
    monkeypatch.setattr(user_class, "LARGEST_FOLDER", 100)
    with pytest.raises(UserError, match="start the run in a folder that holds"):
        sources_in_use()


def test_an_own_network_can_be_compiled(folder):
    import torch

    network = find("network", "my_network:Net", UserError)((3,))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(2, 3)), network(torch.ones(2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("samplers", ["0", "2"])
def test_a_run_uses_the_users_modules_and_its_own(folder, samplers):
    done = run_command(
        str(ROOT / "train.py"), "--env", "my_env:MyEnv", "--network", "my_network:Net",
        "--env_num", "2", "--train_total_steps", "200", "--batch_size", "64",
        "--minibatch_size", "64", "--samplers", samplers, "--run_dir", "run", cwd=folder,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished" in done.stdout
