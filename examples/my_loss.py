"""A loss of your own, in a loop of your own: `python my_loss.py`."""

import dataclasses

import torch
from torch import Tensor

from agent import PPOAgent
from algorithm import PPO
from cluster.make import make_pool
from learning.batches import Minibatch
from model import build_model
from settings.sources import preset

UPDATES = 40


class SPO(PPO):
    """Simple Policy Optimization (Xie et al. 2024, arXiv 2401.16025): a penalty, not a clip."""

    def loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and the numbers that the log shows."""
        # after an episode's end a row is a reset, and no step: its weight is 0
        weight = batch.weight / batch.weight.sum()

        def mean(x: Tensor) -> Tensor:
            return (x * weight).sum()

        params, value = self.model(batch.obs)
        log_prob = self.model.distribution.log_prob(params, batch.action)
        ratio = (log_prob - batch.behaviour_log_prob).exp()
        centred = batch.advantage - mean(batch.advantage)
        advantage = centred / (mean(centred**2).sqrt() + 1e-8)
        penalty = advantage.abs() / (2 * self.clip_range) * (ratio - 1) ** 2
        policy_loss = mean(penalty - ratio * advantage)
        value_loss = mean((value - batch.value_target) ** 2)
        kl = mean(ratio - 1 - ratio.log())
        return policy_loss + self.config.value_coefficient * value_loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": mean(self.model.distribution.entropy(params)),
            "approx_kl": kl,
            "update_kl": kl,
            "clip_fraction": mean(((ratio - 1).abs() > self.clip_range).float()),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)  # in a network this small, several threads wait more than they compute
    config = dataclasses.replace(preset("CartPole-v1"), env_num=8, samplers=2)
    agent = PPOAgent(SPO(build_model(config), config), config)
    pool = make_pool(config, agent.model, agent.weights())
    try:
        for update in range(UPDATES):
            pool.request(agent.weights(), fragment=update, reset=update == 0)
            rollout = pool.gather()  # [T, N] of everything: see rollout.py
            metrics = agent.learn(rollout, progress=update / UPDATES)
            returns = [episode.episode_return for episode in rollout.episodes]
            print(update, f"policy loss {metrics['loss/policy']:.3f}", "returns", returns)
        agent.save("my_agent")
    finally:
        pool.close()
