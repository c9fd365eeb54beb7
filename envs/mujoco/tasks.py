"""gymnasium's MuJoCo tasks, a record each: what a policy sees, what it is paid, when an episode ends.

The numbers are gymnasium's, bit for bit, so each sum is taken in gymnasium's order and precision, and
by functions of numpy that round as those which gymnasium calls for one robot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Robots = dict[str, np.ndarray]
"""What MuJoCo knows of N robots: arrays [N, ...] float64 by the names of mjData's, flattened."""


class Step(NamedTuple):
    """A step of N robots.

    `actions`: [N, actuators] float32. `measured`, `before`: what the task measures, [N], after the
    step and before it.
    """

    robots: Robots
    actions: np.ndarray
    measured: np.ndarray
    before: np.ndarray


# each of these is given gymnasium's environment too, which holds the task's constants
_Part = Callable[[Any, Robots], np.ndarray]
_Outcome = Callable[[Any, Step], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """A task of gymnasium's.

    `observation`: its parts [N, ...], in order.
    `outcome`: the reward [N] and whether the robot's episode has terminated [N].
    `measure`: [N], what the reward compares with its value before the step.
    `reads`: what it reads of mjData beside the state of the physics.
    """

    observation: tuple[_Part, ...]
    outcome: _Outcome
    measure: _Part = lambda task, robots: robots["qpos"][:, 0]
    reads: tuple[str, ...] = ()


# --- parts of observations


def _part(name: str, first: int = 0, last: int | None = None) -> _Part:
    return lambda task, robots: robots[name][:, first:last]


def _clipped(name: str, last: int | None = None) -> _Part:
    return lambda task, robots: np.clip(robots[name][:, :last], -10, 10)


def _turned(function: np.ufunc, first: int = 0, last: int | None = None) -> _Part:
    return lambda task, robots: function(robots["qpos"][:, first:last])


def _body(name: str) -> _Part:
    """A body's place [N, 3]."""

    def place(task: Any, robots: Robots) -> np.ndarray:
        first = 3 * task.model.body(name).id
        return robots["xpos"][:, first : first + 3]

    return place


def _between(one: str, other: str, axes: int = 3) -> _Part:
    """From one body to another, [N, axes]."""
    there, here = _body(one), _body(other)
    return lambda task, robots: (there(task, robots) - here(task, robots))[:, :axes]


def _touch(task: Any, robots: Robots) -> np.ndarray:
    """Contact forces, clipped; those of the world, body 0, are among them."""
    return np.clip(robots["cfrc_ext"], *task._contact_force_range)


# --- what is measured


def _torso(task: Any, robots: Robots) -> np.ndarray:
    return _body("torso")(task, robots)[:, 0]


def _mass_centre(task: Any, robots: Robots) -> np.ndarray:
    mass = task.model.body_mass
    places = robots["xipos"].reshape(-1, len(mass), 3)
    return np.einsum("b,nbj->nj", mass, places)[:, 0] / mass.sum()


def _distance(part: _Part) -> _Part:
    """The Euclidean norm [N] of a part; gymnasium's is by BLAS, whose sum `np.vecdot` takes too."""

    def norm(task: Any, robots: Robots) -> np.ndarray:
        vectors = part(task, robots)
        return np.sqrt(np.vecdot(vectors, vectors))

    return norm


# --- which robots are healthy, [N] bool


def _upright(task: Any, robots: Robots) -> np.ndarray:
    (low, high), (least, most) = task._healthy_z_range, task._healthy_angle_range
    z, angle = robots["qpos"][:, 1], robots["qpos"][:, 2]
    return (low < z) & (z < high) & (least < angle) & (angle < most)


def _upright_and_bounded(task: Any, robots: Robots) -> np.ndarray:
    low, high = task._healthy_state_range
    bounded = np.concatenate([robots["qpos"][:, 2:], robots["qvel"]], 1)
    return _upright(task, robots) & ((low < bounded) & (bounded < high)).all(1)


def _at_height(task: Any, robots: Robots) -> np.ndarray:
    low, high = task._healthy_z_range
    qpos, finite = robots["qpos"], np.isfinite(robots["qpos"]).all(1)
    finite &= np.isfinite(robots["qvel"]).all(1)
    return finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)


def _standing(task: Any, robots: Robots) -> np.ndarray:
    low, high = task._healthy_z_range
    z = robots["qpos"][:, 2]
    return (low < z) & (z < high)


# --- costs, [N]


def _effort(actions: np.ndarray) -> np.ndarray:
    return np.square(actions).sum(1)


def _touch_cost(task: Any, robots: Robots) -> np.ndarray:
    return task._contact_cost_weight * _effort(_touch(task, robots))


def _impact_cost(task: Any, robots: Robots) -> np.ndarray:
    cost = task._contact_cost_weight * _effort(robots["cfrc_ext"])
    return np.clip(cost, *task._contact_cost_range)


# --- outcomes


def _running(
    healthy: _Part | None = None, contact_cost: _Part | None = None, effort_of: type = np.float32
) -> _Outcome:
    """Paid for speed and for being healthy; the effort and contacts cost something.

    Args:
        effort_of: in which precision the actions are summed up.
    """

    def outcome(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
        weight = getattr(task, "_forward_reward_weight", 1.0)
        reward = weight * ((step.measured - step.before) / task.dt)
        terminated = np.zeros(len(reward), bool)
        if healthy is not None:
            is_healthy = healthy(task, step.robots)
            # -v4 pays it in the step that ends the episode too
            paid = is_healthy if task.spec.version == 5 else True
            reward = reward + paid * task._healthy_reward
            terminated = ~is_healthy
        cost = task._ctrl_cost_weight * _effort(step.actions.astype(effort_of, copy=False))
        if contact_cost is not None:
            cost = cost + contact_cost(task, step.robots)
        return reward - cost, terminated

    return outcome


def _standing_up(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    height = step.robots["qpos"][:, 2] / task.model.opt.timestep
    effort = 0.1 * _effort(step.actions.astype(np.float64))
    impact = np.minimum(0.5e-6 * _effort(step.robots["cfrc_ext"]), 10)
    return height - effort - impact + 1, np.zeros(len(height), bool)


def _reaching_before(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Reacher-v4's: of the distance before the step."""
    return -step.before - _effort(step.actions), np.zeros(len(step.before), bool)


def _reaching(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    return -step.measured - _effort(step.actions), np.zeros(len(step.measured), bool)


def _pushing(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    far = _distance(_between("object", "goal"))(task, step.robots)
    effort = -_effort(step.actions) * task._reward_control_weight
    reward = -far + effort + -step.measured * task._reward_near_weight
    return reward, np.zeros(len(far), bool)


def _balancing(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    qpos, qvel = step.robots["qpos"], step.robots["qvel"]
    finite = np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1)
    terminated = ~finite | (np.abs(qpos[:, 1]) > 0.2)
    return np.where(terminated & (task.spec.version == 5), 0.0, 1.0), terminated


def _balancing_two(task: Any, step: Step) -> tuple[np.ndarray, np.ndarray]:
    x, y = step.robots["site_xpos"][:, 0], step.robots["site_xpos"][:, 2]
    v1, v2 = step.robots["qvel"][:, 1], step.robots["qvel"][:, 2]
    terminated = y <= 1
    bonus = np.where(terminated & (task.spec.version == 5), 0.0, 10.0)
    distance = 0.01 * _squared(x) + _squared(y - 2)
    return bonus - distance - (1e-3 * _squared(v1) + 5e-3 * _squared(v2)), terminated


def _squared(values: np.ndarray) -> np.ndarray:
    """Squares [N] as gymnasium takes them of one number: by C's pow, whose last bit may differ."""
    return np.array([value**2 for value in values.tolist()])


# --- the table

_FORWARD = (_part("qpos", 1), _part("qvel"))
_BOUNDED = (_part("qpos", 1), _clipped("qvel"))
_PLANE = (_part("qpos", 2), _part("qvel"))
_HUMANOID_READS = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
_HUMANOID_V4 = (*_PLANE, *(_part(name) for name in _HUMANOID_READS))
# without the world, body 0, and the six forces on the root, which has no actuator
_HUMANOID_V5 = (
    *_PLANE, _part("cinert", 10), _part("cvel", 6), _part("qfrc_actuator", 6), _part("cfrc_ext", 6)
)  # fmt: skip
_ARM = (_turned(np.cos, 0, 2), _turned(np.sin, 0, 2), _part("qpos", 2), _part("qvel", 0, 2))
_TO_TARGET = _between("fingertip", "target")
_PENDULA = (_part("qpos", 0, 1), _turned(np.sin, 1), _turned(np.cos, 1), _clipped("qvel"))

TASKS = {
    "HalfCheetah-v4": Task(_FORWARD, _running()),
    "HalfCheetah-v5": Task(_FORWARD, _running()),
    "Swimmer-v4": Task(_PLANE, _running()),
    "Swimmer-v5": Task(_PLANE, _running()),
    "Hopper-v4": Task(_BOUNDED, _running(_upright_and_bounded)),
    "Hopper-v5": Task(_BOUNDED, _running(_upright_and_bounded)),
    "Walker2d-v4": Task(_BOUNDED, _running(_upright)),
    "Walker2d-v5": Task(_BOUNDED, _running(_upright)),
    "Ant-v4": Task(_PLANE, _running(_at_height), _torso, ("xpos",)),
    "Ant-v5": Task(
        (*_PLANE, lambda task, robots: _touch(task, robots)[:, 6:]),
        _running(_at_height, _touch_cost), _torso, ("xpos", "cfrc_ext"),
    ),
    "Humanoid-v4": Task(
        _HUMANOID_V4, _running(_standing, effort_of=np.float64), _mass_centre,
        ("xipos", *_HUMANOID_READS),
    ),
    "Humanoid-v5": Task(
        _HUMANOID_V5, _running(_standing, _impact_cost, np.float64), _mass_centre,
        ("xipos", *_HUMANOID_READS),
    ),
    "HumanoidStandup-v4": Task(_HUMANOID_V4, _standing_up, reads=_HUMANOID_READS),
    "HumanoidStandup-v5": Task(_HUMANOID_V5, _standing_up, reads=_HUMANOID_READS),
    "Reacher-v4": Task((*_ARM, _TO_TARGET), _reaching_before, _distance(_TO_TARGET), ("xpos",)),
    "Reacher-v5": Task(
        (*_ARM, _between("fingertip", "target", 2)), _reaching, _distance(_TO_TARGET), ("xpos",)
    ),
    "Pusher-v5": Task(
        (_part("qpos", 0, 7), _part("qvel", 0, 7), *map(_body, ("tips_arm", "object", "goal"))),
        _pushing, _distance(_between("object", "tips_arm")), ("xpos",),
    ),
    "InvertedPendulum-v4": Task((_part("qpos"), _part("qvel")), _balancing),
    "InvertedPendulum-v5": Task((_part("qpos"), _part("qvel")), _balancing),
    "InvertedDoublePendulum-v4": Task(
        (*_PENDULA, _clipped("qfrc_constraint")), _balancing_two,
        reads=("site_xpos", "qfrc_constraint"),
    ),
    "InvertedDoublePendulum-v5": Task(
        (*_PENDULA, _clipped("qfrc_constraint", 1)), _balancing_two,
        reads=("site_xpos", "qfrc_constraint"),
    ),
}  # fmt: skip
"""By gymnasium's ids. Pusher-v4 is not among them: gymnasium cannot make it with this MuJoCo."""
