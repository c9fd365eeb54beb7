"""PPO in a loop of your own: an environment, samplers, an agent; collect, learn, save."""

import dataclasses

import torch

from agent import make_agent
from cluster.make import make_pool
from settings.sources import preset

UPDATES = 20

if __name__ == "__main__":
    torch.set_num_threads(1)  # in a network this small, several threads wait more than they compute
    config = dataclasses.replace(preset("CartPole-v1"), env_num=8, samplers=2)
    agent = make_agent(config)
    pool = make_pool(config, agent.model, agent.weights())
    try:
        for update in range(UPDATES):
            pool.request(agent.weights(), fragment=update, reset=update == 0)
            rollout = pool.gather()  # [T, N] of everything: see rollout.py
            metrics = agent.learn(rollout, progress=update / UPDATES)
            returns = [episode.episode_return for episode in rollout.episodes]
            print(update, f"entropy {metrics['entropy']:.2f}", "returns", returns)
        agent.save("my_agent")
    finally:
        pool.close()
