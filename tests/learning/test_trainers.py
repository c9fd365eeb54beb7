"""Several trainers compute what one computes from the same environments, and stay alike."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._distributed_c10d import FileStore

from cluster.child import close_all
from common.errors import TrainerLost
from learning import common_memory
from learning.linked import Linked
from learning.trainers import Trainers
from tests.learning.trainer_process import Result, results, together, updates

CASES = {
    # statistics of observations, rewards and value targets; both decisions by the KL
    "statistics": ("CartPole-v1", {
        "normalize_observation": True, "reward_transform": "return_std", "normalize_value": True,
        "learning_rate_schedule": "kl", "target_kl": 0.002, "update_epochs": 4,
    }),
    "rnd": ("CartPole-v1", {"rnd_coefficient": 0.5, "rnd_proportion": 1.0, "dual_clip": 4.0}),
    "kl_penalty": ("Pendulum-v1", {"kl_penalty": "adaptive", "carried_steps": 16}),
    # each trainer's part of a minibatch is two shares
    "compiled": ("CartPole-v1", {"compile": "on", "normalize_value": True, "torch_threads": 2}),
    "lstm": ("tests.toy_envs:Remember", {"network": "lstm"}),
}  # fmt: skip


def group(size: int, folder: Path, function: str, *arguments, machines: int = 1) -> list[Result]:
    store = folder / f"store {size} {machines} {function}"
    children = together(size, store, function, *arguments, machines=machines)
    try:
        return results(children)
    finally:
        close_all(children)


def flat(counters: dict[str, Any]) -> list[float]:
    return [float(x) for value in counters.values() for x in np.ravel(value)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_two_and_four_trainers_learn_the_same(case, tmp_path):
    """In exact arithmetic; to the bit among the trainers of a group, and from run to run."""
    env, settings = CASES[case]
    told, arrays = updates(Trainers(), env, settings | {"compile": "off"})
    for size in (2, 4) if case == "statistics" else (2,):
        everyone = group(size, tmp_path, "updates", *CASES[case])
        for theirs, of_theirs in everyone:
            assert theirs == everyone[0][0]
            for name, array in of_theirs.items():
                assert np.array_equal(array, everyone[0][1][name]), name
        theirs, of_theirs = everyone[0]
        assert flat(theirs["counters"]) == pytest.approx(flat(told["counters"]), rel=1e-4)
        for one, other in zip(told["metrics"], theirs["metrics"], strict=True):
            assert other == pytest.approx(one, rel=2e-3, abs=2e-4)
        for name, array in arrays.items():
            np.testing.assert_allclose(of_theirs[name], array, rtol=2e-3, atol=2e-5, err_msg=name)


def test_trainers_in_different_states_stop(tmp_path):
    for told, _ in group(2, tmp_path, "differ", str(tmp_path)):
        assert told["alike"] == "finished"
        assert "trainer 1 is in another state than trainer 0" in told["error"]
        assert "after update 7 they were alike" in told["error"]
        assert f"--resume {tmp_path}" in told["error"]


def test_sums_are_added_in_the_order_of_ranks_as_tensors_grow(tmp_path):
    sizes = [1, 5, 5, 300, 70_001, 2]
    everyone = group(3, tmp_path, "summed", sizes)
    for place, size in enumerate(sizes):
        for kind in (torch.float32, torch.float64):
            expected = 0
            for rank in range(3):
                generator = torch.Generator().manual_seed(100 * place + rank)
                expected = expected + torch.randn(size, generator=generator, dtype=kind)
            for _, sums in everyone:
                assert np.array_equal(sums[f"{place} {kind}"], expected)


@pytest.mark.slow
def test_two_trainers_learn_the_same_bits_on_one_machine_and_on_two(tmp_path):
    here, apart = (group(2, tmp_path, "updates", *CASES["compiled"], machines=m) for m in (1, 2))
    for (told, arrays), (theirs, of_theirs) in zip(here, apart, strict=True):
        assert theirs == told
        assert all(np.array_equal(array, of_theirs[name]) for name, array in arrays.items())


@pytest.mark.parametrize("reason", [None, "sigterm"])
@pytest.mark.parametrize("waits_in", ["everyone", "sum"])
def test_a_trainer_that_ends_is_noticed_at_once_and_so_is_why(waits_in, reason, tmp_path):
    children = together(2, tmp_path / "store", "lost", reason, waits_in)
    try:
        ((told, _),) = results(children[:1])
    finally:
        close_all(children)
    assert "another trainer is gone" in told["error"]
    assert told["stopped"] == reason


@pytest.mark.parametrize(("rank", "exchange"), [(0, 2), (1, 3)])
def test_a_trainer_that_is_killed_leaves_no_file_behind(rank, exchange, tmp_path):
    children = together(2, tmp_path / "store", "killed", rank, exchange)
    try:
        ((told, _),) = results(children[1 - rank : 2 - rank])
    finally:
        close_all(children)
    assert "another trainer is gone" in told["error"]
    files = f"dppo-trainers-{children[0].pid}-*"
    assert [*Path("/dev/shm").glob(files), *Path(tempfile.gettempdir()).glob(files)] == []


def test_without_room_in_memory_trainers_share_a_temporary_file(monkeypatch, tmp_path):
    monkeypatch.setattr(common_memory, "_MEMORY", str(tmp_path / "no such folder"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alone = common_memory.CommonMemory(0, 1, 100, lambda message: [message])
    numbers = torch.arange(5.0)
    alone.sum(numbers)
    assert torch.equal(numbers, torch.arange(5.0))
    assert alone.gather(b"abc") == [b"abc"]
    alone.close()
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nor this one"))
    with pytest.raises(common_memory.NoCommonMemory, match=r"nor this one.*\bTMPDIR"):
        common_memory.CommonMemory(0, 1, 100, lambda message: [message])


def test_trainers_that_cannot_be_connected_say_what_to_look_at(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    with pytest.raises(TrainerLost, match=r"cannot be connected \(.*GLOO_SOCKET_IFNAME is eth9"):
        Linked(FileStore(str(tmp_path / "store"), 2), 0, 2)


def test_all_trainers_refuse_a_choice_in_which_one_differs(tmp_path):
    for told, _ in group(2, tmp_path, "unlike"):
        assert told["alike"] == ""
        assert "precision is float32 for trainer 0, but bfloat16 for trainer 1" in told["error"]


def test_a_reward_that_is_no_number_is_refused_by_all_trainers(tmp_path):
    (told, arrays), (theirs, of_theirs) = group(2, tmp_path, "not_a_number")
    assert told["error"] != ""
    assert theirs == told
    assert all(np.array_equal(array, of_theirs[name]) for name, array in arrays.items())
    assert all(np.isfinite(array).all() for array in arrays.values())
