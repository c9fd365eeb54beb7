"""Steps MuJoCo tasks by one engine, in one thread, as `physics.py` asks it to, a line each.

step_mujoco.py ENGINE ENVS    reads "TASK SECONDS", prints microseconds per step of one robot
"""
# pyright: reportMissingImports=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false
# (it runs in each peer's own environment)

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
Stepper = Callable[[np.ndarray], object]


def gymnasium(task: str, envs: int) -> tuple[Stepper, int]:
    """gymnasium's own vector of environments. Every engine: a step function, and an action's size."""
    import gymnasium

    gymnasium.logger.min_level = gymnasium.logger.ERROR  # nothing of older versions of tasks
    vector = gymnasium.make_vec(task, envs, vectorization_mode="sync")
    vector.reset(seed=1)
    return vector.step, vector.single_action_space.shape[0]


def project(task: str, envs: int) -> tuple[Stepper, int]:
    sys.path.insert(0, str(ROOT))
    from envs import make_vec_env

    vector = make_vec_env(task, envs)
    vector.reset(seed=1)
    return vector.step, vector.single_action_space.shape[0]


def envpool(task: str, envs: int) -> tuple[Stepper, int]:
    import envpool

    pool = envpool.make_gymnasium(task, num_envs=envs, num_threads=1, seed=1)
    pool.reset()
    return lambda actions: pool.step(actions.astype(np.float64)), pool.action_space.shape[0]


def mjbatch(task: str, envs: int) -> tuple[Stepper, int]:
    """mjbatch steps the physics, without contact forces on bodies; the rest is the project's table."""
    import gymnasium
    from mjbatch import Batch

    gymnasium.logger.min_level = gymnasium.logger.ERROR
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "envs" / "mujoco" / "tasks.py")
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    made = gymnasium.make(task)
    record, env, limit = tasks.TASKS[task], made.unwrapped, made.spec.max_episode_steps
    batch = Batch(env.model, envs, num_threads=1)
    bound = {name: batch.bind(name) for name in ("qpos", "qvel", *record.reads)}
    ctrl, rng = batch.bind("ctrl"), np.random.default_rng(1)
    steps = 0

    def reset(ids: np.ndarray) -> None:
        batch.reset(ids)
        for name, start in (("qpos", env.init_qpos), ("qvel", env.init_qvel)):
            noise = rng.uniform(-1, 1, (len(ids), len(start)))
            bound[name][ids] = start + getattr(env, "_reset_noise_scale", 0.01) * noise
        batch.forward(ids)

    def robots() -> dict[str, np.ndarray]:
        return {name: array.reshape(envs, -1) for name, array in bound.items()}

    def step(actions: np.ndarray) -> None:
        nonlocal before, steps
        ctrl[:] = actions
        batch.step(nstep=env.frame_skip)
        now = robots()
        measured = record.measure(env, now).copy()
        outcome = record.outcome(env, tasks.Step(now, actions, measured, before))
        np.concatenate([part(env, now) for part in record.observation], 1)
        steps += 1
        over = outcome[1] | (steps % limit == 0)
        if over.any():
            reset(np.flatnonzero(over))
            measured = record.measure(env, robots()).copy()
        before = measured

    reset(np.arange(envs))
    before = record.measure(env, robots()).copy()
    return step, env.model.nu


ENGINES = {"gymnasium": gymnasium, "project": project, "envpool": envpool, "mjbatch": mjbatch}


def main() -> None:
    make, envs = ENGINES[sys.argv[1]], int(sys.argv[2])
    made: dict[str, tuple[Stepper, list[np.ndarray]]] = {}
    for line in sys.stdin:
        task, seconds = line.split()
        if task not in made:
            step, size = make(task, envs)
            rng = np.random.default_rng(0)
            actions = list(rng.uniform(-0.4, 0.4, (64, envs, size)).astype(np.float32))
            for action in actions[:16]:  # compiles, and leaves the pose of the reset
                step(action)
            made = {task: (step, actions)}
        step, actions = made[task]
        count, start = 0, time.perf_counter()
        for action in itertools.cycle(actions):
            step(action)
            count += 1
            if time.perf_counter() - start > float(seconds):
                break
        print((time.perf_counter() - start) / count / envs * 1e6, flush=True)


if __name__ == "__main__":
    main()
