"""The settings of how a run learns: networks, rewards, batches and the loss. See `settings.owners`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from common.values import (
    OFF,
    ON,
    Bound,
    Count,
    Natural,
    Needs,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
)

_LOG_STD = Bound("from -20 to 2", lambda x: -20 <= x <= 2)  # as Spinning Up bounds it


@dataclass
class Networks:
    """The policy, the value function, and what they see."""

    network: str = "mlp"
    """mlp for vectors; lstm or transformer where earlier vectors matter too; nature_cnn (Mnih et al.
    2015) or impala (Espeholt et al. 2018) for images; gridnet, gridnet_cnn or microrts_cnn for
    microRTS; module:Class for one of your own."""
    memory_steps: Annotated[Count, Needs(network="transformer")] = 16
    """Observations that a transformer looks back over, its own included."""
    hidden_sizes: Annotated[tuple[Count, ...], Needs(network=("mlp", "lstm"))] = (64, 64)
    """Widths of the hidden layers of an mlp, and of an lstm's encoder."""
    activation: Annotated[
        Literal["tanh", "relu", "elu", "silu"], Needs(network=("mlp", "lstm"))
    ] = "tanh"
    """Activation of the hidden layers of an mlp or an lstm; nature_cnn has ReLU."""
    shared_trunk: bool = False
    """One trunk for actor and critic, or one for each."""
    distribution: Literal["auto", "normal", "tanh_normal", "beta", "categorical"] = "auto"
    """The policy's distribution. auto: categorical for discrete actions, normal for continuous."""
    scale_action: Annotated[bool, Needs(distribution="normal")] = False
    """Let [-1, 1] of a normal policy mean the whole width of the action's bounds."""
    initial_log_std: Annotated[
        float,
        _LOG_STD,
        Needs(distribution=("normal", "tanh_normal")),
        Needs(initial_weights=OFF, state_dependent_std=ON),
    ] = 0.0
    """Log standard deviation that a normal policy begins with."""
    state_dependent_std: Annotated[bool, Needs(distribution=("normal", "tanh_normal"))] = False
    """The standard deviation is an output of the network, not a parameter of its own."""
    noisy_layers: bool = False
    """Perturb the weights of the policy's last layer, and of the last hidden layer of an mlp that
    the critic does not share, by learned scales (Fortunato et al. 2018, arXiv 1706.10295)."""
    normalize_observation: bool = False
    """Normalise observations by their running mean and standard deviation."""
    observation_clip: Annotated[Positive, Needs(normalize_observation=ON)] = 10.0
    """Bound of a normalised observation."""


@dataclass
class Rewards:
    """Rewards as the learner sees them; logged returns are always raw."""

    reward_transform: Literal["none", "sign", "return_std"] = "none"
    """sign: -1, 0 or 1 (Atari). return_std: divide by the running standard deviation of the
    discounted return of each environment's stream."""
    reward_clip: Annotated[Positive, Needs(reward_transform="return_std")] = 10.0
    """Bound of a reward under return_std."""
    rnd_coefficient: NotNegative = 0.0
    """Weight of the advantages of intrinsic rewards, Random Network Distillation's (Burda et al.
    2018, arXiv 1810.12894). 0: none."""
    rnd_gamma: Annotated[Share, Needs(rnd_coefficient=ON)] = 0.99
    """Discount of the intrinsic returns, which go on over the ends of episodes."""
    rnd_proportion: Annotated[PositiveShare, Needs(rnd_coefficient=ON)] = 0.25
    """Share of the rows that the predictor learns from in an epoch."""


@dataclass
class Batch:
    """What an update learns from."""

    policy_lag: Natural = 1
    """0: collect, then learn. 1: learn on a fragment while the next one is collected. 2 and more:
    asynchronous; fragments are learned from as they arrive, and dropped if older than this."""
    batch_size: Annotated[Count, Needs(rollout_steps=OFF)] = 2048
    """Steps per update, over all environments."""
    rollout_steps: Count | None = None
    """Steps per environment and update. Default: the number nearest to batch_size / env_num with
    which whole minibatches make up the batch."""
    minibatch_size: Count = 256
    """Steps per gradient step. Where no batch within a factor of 1.5 of batch_size is made of whole
    minibatches, the minibatches take the nearest size of which one is."""
    update_epochs: Count = 10
    """Passes over a batch."""
    value_epochs: Count | None = None
    """Passes of the value function's own layers. If they are more than update_epochs, or target_kl
    stops the policy, these layers go on alone; if fewer, they rest in the later passes. Default: as
    many as all else."""
    replay_batches: Natural = 0
    """Earlier batches that an update learns from again, beside the new one. They are older than
    policy_lag says: give --clip_from start or --estimator vtrace too, which correct for it."""
    replay_size: Annotated[Count | None, Needs(replay_batches=ON)] = None
    """How many of the last batches they are drawn from. Default: replay_batches."""
    carried_steps: Natural = 0
    """Partial GAE (Song et al. 2023, arXiv 2301.10920): a fragment is this much longer than what
    is learned from; its tail is there for the estimates, and is carried over to the next."""


@dataclass
class Ppo:
    """The loss, and how it is minimised (PPO: Schulman et al. 2017, arXiv 1707.06347)."""

    learning_rate: Positive = 3e-4
    """Adam's learning rate, at the start."""
    value_learning_rate: Positive | None = None
    """The same for the value function's own layers; it follows the same schedule. Default:
    learning_rate."""
    learning_rate_schedule: Literal["constant", "linear", "kl"] = "linear"
    """linear: to 0 over the run. kl: multiplied or divided by 1.5 after each update whose KL leaves
    [desired_kl / 2, 2 desired_kl], between 1e-6 and 1e-2."""
    desired_kl: Annotated[
        Positive,
        Needs(learning_rate_schedule="kl", kl_penalty="adaptive", kl_excess_coefficient=ON),
    ] = 0.01
    """KL that learning_rate_schedule kl and kl_penalty adaptive aim at."""
    adam_eps: Positive = 1e-5
    """Adam's epsilon."""
    gamma: Share = 0.99
    """Discount."""
    estimator: Literal["gae", "td_lambda", "monte_carlo", "vtrace", "upgo"] = "gae"
    """Advantages and value targets: GAE (Schulman et al. 2016, arXiv 1506.02438), TD(lambda) and
    Monte Carlo returns less the value, V-trace (Espeholt et al. 2018), UPGO (Vinyals et al. 2019)."""
    gae_lambda: Annotated[
        Share, Needs(estimator=("gae", "td_lambda", "vtrace", "upgo"), rnd_coefficient=ON)
    ] = 0.95
    """Lambda of every estimator that has one; of upgo's value targets, and of RND's advantages."""
    rho_clip: Annotated[Positive, Needs(estimator="vtrace")] = 1.0
    """V-trace's bound of the importance weights, in the policy's loss too."""
    c_clip: Annotated[NotNegative, Needs(estimator="vtrace")] = 1.0
    """V-trace's bound of the weights that carry an error back in time."""
    recompute_advantages: bool = False
    """Compute values and advantages anew before every epoch, not only before the first."""
    normalize_advantage: bool = True
    """Normalise advantages to mean 0 and standard deviation 1 in each minibatch."""
    joint_loss: Literal["compound", "sub_action", "mix_ratio", "mix_loss"] = "compound"
    """What is clipped where an action has K sub-actions (Song et al. 2023, arXiv 2301.10919): the
    ratio of the joint action, each sub-action's own, their mix, or the losses' mix."""
    mix_weight: Annotated[Share, Needs(joint_loss=("mix_ratio", "mix_loss"))] = 0.5
    """Weight of the sub-actions in mix_ratio and mix_loss, at the start."""
    mix_weight_end: Annotated[Share | None, Needs(joint_loss=("mix_ratio", "mix_loss"))] = None
    """The weight at the end of the run, to which it goes linearly. Default: it stays."""
    clip_range: Annotated[Positive, Needs(kl_penalty="none")] = 0.2
    """Clip of the probability ratio, at the start."""
    clip_from: Annotated[
        Literal["behaviour", "start"],
        Needs(policy_lag=ON, carried_steps=ON, replay_batches=ON, trainer_mode="hogwild"),
        Needs(estimator=("gae", "td_lambda", "monte_carlo", "upgo")),
    ] = "behaviour"
    """What the ratio is to: the policy that acted, or that at the update's start; rows are then
    weighted by the ratio of these two (the decoupled objective, Hilton, Cobbe & Schulman 2021, arXiv
    2110.00641). With V-trace it is always to the update's start, with weights of rho_clip at most."""
    clip_schedule: Annotated[Literal["constant", "linear"], Needs(kl_penalty="none")] = "constant"
    """linear: to 0 over the run."""
    dual_clip: Annotated[float, Bound("of at least 1", lambda x: x >= 1)] | None = None
    """Bound of ratio x advantage from below at dual_clip x advantage, where that is negative
    (Ye et al. 2020, arXiv 1912.09729). Default: none."""
    kl_penalty: Literal["none", "fixed", "adaptive"] = "none"
    """Penalise the KL divergence from the behaviour policy instead of clipping. adaptive: the
    coefficient is doubled or halved where an update's KL leaves [desired_kl / 1.5, 1.5 desired_kl],
    between 1e-4 and 1e4 (Schulman et al. 2017, section 4; Heess et al. 2017, arXiv 1707.02286)."""
    kl_coefficient: Annotated[NotNegative, Needs(kl_penalty=("fixed", "adaptive"))] = 1.0
    """Weight of the KL penalty, at the start."""
    kl_excess_coefficient: Annotated[NotNegative, Needs(kl_penalty=("fixed", "adaptive"))] = 0.0
    """Weight of max(0, KL - 2 desired_kl)^2, against large violations (Heess et al. 2017)."""
    value_coefficient: NotNegative = 0.5
    """Weight of the value loss, the mean of (V - R)^2."""
    value_loss: Literal["squared", "huber"] = "squared"
    """huber: linear where |V - R| > 1."""
    value_clip: Positive | None = None
    """Bound of the value's change in an update (PPO2's value clipping). Default: none."""
    normalize_value: bool = False
    """PopArt (van Hasselt et al. 2016, arXiv 1602.07714): learn values in units of their targets'
    running mean and standard deviation, and keep the outputs when those move."""
    entropy_coefficient: NotNegative = 0.0
    """Weight of the entropy bonus, at the start."""
    entropy_schedule: Annotated[
        Literal["constant", "linear", "exponential"], Needs(entropy_coefficient=ON)
    ] = "constant"
    """linear: to 0 over the run. exponential: times entropy_decay after each update."""
    entropy_decay: Annotated[Share, Needs(entropy_schedule="exponential")] = 0.99
    """See entropy_schedule."""
    max_grad_norm: Positive = 0.5
    """Bound of the gradient's norm."""
    clip_gradients: Literal["together", "apart"] = "together"
    """What max_grad_norm bounds. apart: the norm of the critic's gradient, and that of all else."""
    target_kl: NotNegative | None = None
    """Stop an update's epochs once the mean KL of one from the policy at the update's start (the metric
    update_kl) exceeds this. Default: never."""
