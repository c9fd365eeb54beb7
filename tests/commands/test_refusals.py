"""What train.py refuses: it exits with code 2 and says why in one line."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT, run_command

pytestmark = pytest.mark.slow  # these start Python, which imports for seconds


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--env", "HalfCheeta-v4"], "did you mean HalfCheetah-v4"),
        (["--env", "CartPole-v1", "--continuous_action"], "CartPole-v1 has discrete actions"),
        (["--env", "CartPole-v1", "--env_num", "0"], "env_num is 0"),
        (["--env", "CartPole-v1", "--env_num", "-1"], "env_num is -1"),
        (["--env", "CartPole-v1", "--minibatch_size", "100"], "does not divide"),
        (["--env", "CartPole-v1", "--learning_rte", "1"], "learning_rte"),
        (["--env", "CartPole-v1", "--seed", "x"], "seed"),
        (["--resume", "tests"], "not the folder of a run"),
        (["--env", "tests.toy_envs:ManyBits"], "MultiBinary"),
        (["--env", "CartPole-v1", "--xparl_addr", "localhost:1"], "nothing listens at xparl_addr"),
        (["--env", "CartPole-v1", "--distribution", "beta"], "give categorical or auto"),
    ],
)
def test_bad_input_is_one_clear_error(flags, complaint, tmp_path):
    done = run_command("train.py", *flags)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(tmp_path):
    bare = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib.util as u; " \
           "find = u.find_spec; u.find_spec = lambda n: None if n == 'parl' else find(n); " \
           "import train; train.main()"  # fmt: skip
    done = run_command("-c", bare)
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: parl not installed: run `make venv`, then `.venv/bin/python train.py`\n"
    )


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_the_other_commands_say_so_too(command):
    done = run_command("-c", f"import sys; sys.modules['tyro'] = None; import {command}")
    assert done.returncode == 2
    assert done.stderr == (
        f"{command}.py: tyro is not installed: run `make venv`, then `.venv/bin/python {command}.py`\n"
    )
