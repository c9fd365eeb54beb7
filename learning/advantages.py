"""From a rollout and the current values to advantages and value targets, by `--estimator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from learning.batches import Batches, to_device
from learning.returns import Steps, gae, upgo, vtrace
from learning.reward_scale import Rewards
from learning.schedules import controlled_by_kl
from learning.trainers import Trainers
from model import ActorCritic
from rollout import Rollout
from settings.config import Config


class Estimates(NamedTuple):
    """What an update's epochs learn from. The last axis is there with RND only."""

    advantage: np.ndarray  # [T, N]
    value_target: np.ndarray  # [T, N], or [T, N, 2]: of extrinsic and of intrinsic rewards
    old_value: np.ndarray  # as the target


# Advantages and value targets [T, N] by the name of the estimator. The advantage of a TD(lambda)
# return is GAE(lambda); with lambda 1 it is Monte Carlo's, bootstrapped where the fragment or the
# time limit cuts an episode.
ESTIMATORS: dict[str, Callable[[Steps, Config, Any], tuple[np.ndarray, np.ndarray]]] = {
    "gae": lambda steps, c, _: gae(steps, c.gamma, c.gae_lambda),
    "td_lambda": lambda steps, c, _: gae(steps, c.gamma, c.gae_lambda),
    "monte_carlo": lambda steps, c, _: gae(steps, c.gamma, 1.0),
    "upgo": lambda steps, c, _: (upgo(steps, c.gamma), gae(steps, c.gamma, c.gae_lambda)[1]),
    "vtrace": lambda steps, c, log_rho: vtrace(
        steps, log_rho, c.gamma, c.gae_lambda, c.rho_clip, c.c_clip
    ),
}
# These are given log_rho, and correct for the age of the data up to the update's start.
OFF_POLICY = {"vtrace"}
# The paper has no bound; Hopper's and Ant's weights reached 3 and 6. This one is for actions of very many
# parts, where a single row could outweigh a minibatch.
MOST_IMPORTANCE = 10.0


def measure_start(
    config: Config, rollout: Rollout, batches: Batches, model: ActorCritic
) -> np.ndarray | None:
    """Put the log-probabilities under the policy at the update's start into the batches.

    The behaviour policy may be older than the update's start. With `clip_from` start and with
    off-policy estimators the ratio in the loss is taken from the update's start, and the loss weighs
    each row by

        min(pi_start(a|s) / pi_behaviour(a|s), bound)

    Without such an estimator the bound is `MOST_IMPORTANCE`: the decoupled objective (Hilton, Cobbe &
    Schulman 2021, arXiv 2110.00641). With V-trace it is `rho_clip`.

    Settings that are controlled by the KL need the KL of this update alone.

    Returns:
        log_rho [T, N] for the estimators of `OFF_POLICY`.
    """
    stale = config.policy_lag > 0 or config.carried_steps > 0 or config.replay_batches > 0
    # other trainers have moved the weights since the rollout began
    stale = stale or config.trainer_mode == "hogwild"
    off_policy, clips_from_start = config.estimator in OFF_POLICY, config.clip_from == "start"
    if off_policy or (clips_from_start and stale):
        start = batches.log_prob(model)
        batches.put(behaviour_log_prob=start)
        log_rho = start.cpu().numpy() - rollout.behaviour_log_prob
        log_rho = log_rho if log_rho.ndim == 2 else log_rho.sum(-1)
        bound = np.float32(np.log(config.rho_clip if off_policy else MOST_IMPORTANCE))
        batches.put(importance=np.exp(np.minimum(log_rho, bound)))
        return log_rho if off_policy else None
    if controlled_by_kl(config) and stale:
        start = batches.log_prob(model)
        batches.put(start_log_prob=start if start.dim() == 2 else start.sum(-1))
    return None


def estimate(
    config: Config,
    rollout: Rollout,
    rewards: Rewards,
    value: np.ndarray,
    log_rho: np.ndarray | None = None,
) -> Estimates:
    """Advantages and value targets of all T rows of a rollout.

    Args:
        value: the current values [T+1, N], or [T+1, N, 2] with RND.
        log_rho: log-probabilities under the policy at the update's start less those under the
            behaviour policy [T, N]; for the estimators of `OFF_POLICY`.
    """
    ends = rollout.terminated, rollout.truncated, rollout.valid
    estimator = ESTIMATORS[config.estimator]
    if rewards.bonus is None:
        advantage, target = estimator(Steps(rewards.reward, value, *ends), config, log_rho)
        return Estimates(advantage, target, value[:-1])
    extrinsic, intrinsic = (np.ascontiguousarray(value[..., head]) for head in (0, 1))
    advantage, target = estimator(Steps(rewards.reward, extrinsic, *ends), config, log_rho)
    # intrinsic returns go on over the ends of episodes: nothing is over for curiosity
    never, always = np.zeros(value[:-1, :, 0].shape, bool), np.ones(value[:-1, :, 0].shape, bool)
    endless = Steps(rewards.bonus, intrinsic, never, never, always)
    if config.estimator in OFF_POLICY:
        assert log_rho is not None
        log_rho = np.where(rollout.valid, log_rho, 0.0)  # a reset chooses nothing
        clips = config.rho_clip, config.c_clip
        extra, extra_target = vtrace(endless, log_rho, config.rnd_gamma, config.gae_lambda, *clips)
    else:
        extra, extra_target = gae(endless, config.rnd_gamma, config.gae_lambda)
    return Estimates(
        advantage + np.float32(config.rnd_coefficient) * extra,
        np.stack([target, extra_target], -1),
        value[:-1],
    )


def normalize_values(
    config: Config,
    model: ActorCritic,
    estimates: Estimates,
    rollout: Rollout,
    trainers: Trainers,
) -> None:
    """Move PopArt's moments on by the value targets of the valid rows that are learned from.

    Each is counted once. Later rows come again in the next fragment, and the columns of replayed fragments
    have been there before.
    """
    new = slice(config.steps_per_rollout), rollout.new_columns
    target = estimates.value_target[new][rollout.valid[new]]
    target = target if target.ndim == 2 else target[:, np.newaxis]
    model.value_head.update_normalizer(to_device(target, model.device), trainers.moments)


def explained_variance(estimates: Estimates, valid: np.ndarray, trainers: Trainers) -> float:
    """1 - Var[R - V] / Var[R] over valid rows, of extrinsic rewards; 0 where R does not vary."""
    target, value = estimates.value_target, estimates.old_value
    if target.ndim == 3:
        target, value = target[..., 0], value[..., 0]
    target, value = target[valid], value[valid]
    variance, rest = trainers.variance(target), trainers.variance(target - value)
    return 1.0 - rest / variance if variance > 0 else 0.0
