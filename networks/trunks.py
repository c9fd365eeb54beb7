"""The networks that `--network` names: one table, and the user's own classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from common.errors import UserError
from common.user_class import find
from networks.grid import GridNet
from networks.images import NATURE_BLOCK, impala, microrts_cnn, nature_cnn
from networks.layers import BLOCK_ROWS, WrongNetwork, mlp
from networks.sequence import Lstm, Transformer
from settings.config import Config


class Past(NamedTuple):
    """The state of a recurrent network before T steps of E environments."""

    state: Tensor  # [E, S]
    begins: Tensor  # [T * E] bool: an episode begins with this observation


class Features(NamedTuple):
    """A trunk's output for B observations, and a recurrent trunk's state after the last step."""

    policy: Tensor  # [B, features]; of a network over a grid [B, channels, H, W]
    whole: Tensor  # [B, features], for values
    state: Tensor | None = None  # [E, S]


@dataclass(frozen=True)
class Trunk:
    """One network of the table.

    Attributes:
        make: (obs_shape, config, noisy) -> the module; noisy asks for noise in its last layer.
        axes: of the observations that it fits: 1 for vectors, 2 for vectors over time [steps,
            inputs], 3 for images [C, H, W]. None: the network itself decides.
        remembers: forward(obs [T * E, ...], state [E, S], begins [T * E]) -> (features, state), and
            `state_size` is S. Otherwise forward(obs [B, ...]) -> features.
        per_cell: forward gives a pair: the features of each cell, and of the whole map.
        compiles_after: gradient steps from which compiling pays for itself: it costs some 20 s, or
            3 s where it is cached, and saves about 1.5 ms a step of a small mlp, tens of
            milliseconds of a CNN. None: never compiled, as the shapes depend on the data, or the
            code is the user's. One that remembers is compiled on the CPU alone: on a GPU its steps
            are a loop, which the compiler would write out.
        bfloat16: it is computed in bfloat16 by default where the processor has it.
        acts_compiled: a stack of linear layers or an `Lstm`, for which on the CPU `Perceptron` and
            `LstmPolicy` act.
        acts_packed: samplers on a CPU act by a `PackedNetwork` of it. It must consist of layers that
            oneDNN has.
        least_rows: rows that acting is padded to. For a few images libraries choose other kernels,
            with other bits (see `Linear`); from here on an image's bits depend on it alone.
        learns_in_blocks: the learner gives images `in_blocks` of so many pixels a side. None: as they
            are.
        eager_on_cpu: it is never compiled for a CPU, where torch's compiler is slow at pooling.
        blocks: acting is computed in blocks of `BLOCK_ROWS` rows, for the same reason, and each
            environment always has the same place in its block. The project's own layers take care
            of it themselves.
    """

    make: Callable[[tuple[int, ...], Config, bool], nn.Module]
    axes: int | None
    remembers: bool = False
    per_cell: bool = False
    compiles_after: int | None = None
    bfloat16: bool = False
    acts_compiled: bool = False
    acts_packed: bool = False
    least_rows: int = 1
    learns_in_blocks: int | None = None
    eager_on_cpu: bool = False
    blocks: bool = False

    def run(self, module: nn.Module, obs: Tensor, past: Past | None) -> Features:
        """A module's features for observations [B, ...], scaled as `Observations` does."""
        if self.remembers:
            assert past is not None, "a recurrent network needs a state"
            whole, state = module(obs, past.state, past.begins)
            return Features(whole, whole, state)
        if self.per_cell:
            return Features(*module(obs))
        whole = module(obs)
        return Features(whole, whole)

    def padding(self, rows: int, first: int) -> tuple[int, int]:
        """How many rows of zeros acting puts before and after a batch of observations.

        Args:
            first: index of the first row's environment in the run.
        """
        if not self.blocks:
            return 0, max(0, self.least_rows - rows)
        before = first % BLOCK_ROWS
        return before, -(before + rows) % BLOCK_ROWS

    def run_rowwise(self, module: nn.Module, obs: Tensor, past: Past | None) -> Features:
        """`run` for one step of acting: a row's bits depend on that row alone.

        Args:
            obs: [N, ...] with the rows of `padding`.
            past: of a recurrent network, padded too.
        """
        if not self.blocks:
            return self.run(module, obs, past)
        blocks = obs.split(BLOCK_ROWS)
        pasts: list[Past | None] = [None] * len(blocks)
        if past is not None:
            states, begins = past.state.split(BLOCK_ROWS), past.begins.split(BLOCK_ROWS)
            pasts = [Past(*part) for part in zip(states, begins, strict=True)]
        parts = [self.run(module, *part) for part in zip(blocks, pasts, strict=True)]
        states = [part.state for part in parts if part.state is not None]
        return Features(
            torch.cat([part.policy for part in parts]),
            torch.cat([part.whole for part in parts]),
            torch.cat(states) if states else None,
        )


VECTOR, OVER_TIME, IMAGE = 1, 2, 3
_FEW_IMAGES = 4  # both oneDNN and cuDNN

TRUNKS: dict[str, Trunk] = {
    "mlp": Trunk(
        lambda shape, config, noisy: mlp(shape[0], config.hidden_sizes, config.activation, noisy),
        VECTOR, compiles_after=10_000, acts_compiled=True,
    ),
    "lstm": Trunk(
        lambda shape, config, noisy: Lstm(shape[0], config.hidden_sizes, config.activation),
        VECTOR, remembers=True, compiles_after=10_000, acts_compiled=True,
    ),
    "transformer": Trunk(
        lambda shape, config, noisy: Transformer(shape), OVER_TIME, compiles_after=2_000
    ),
    "nature_cnn": Trunk(
        lambda shape, config, noisy: nature_cnn(shape),
        IMAGE, compiles_after=1_500, bfloat16=True, acts_packed=True, least_rows=_FEW_IMAGES,
        learns_in_blocks=NATURE_BLOCK,
    ),
    "impala": Trunk(
        lambda shape, config, noisy: impala(shape),
        IMAGE, compiles_after=1_500, bfloat16=True, acts_packed=True, least_rows=_FEW_IMAGES,
        eager_on_cpu=True,
    ),
    "microrts_cnn": Trunk(
        lambda shape, config, noisy: microrts_cnn(shape), IMAGE, bfloat16=True, least_rows=_FEW_IMAGES
    ),
    "gridnet": Trunk(
        lambda shape, config, noisy: GridNet(shape, plain=False),
        IMAGE, per_cell=True, bfloat16=True, least_rows=_FEW_IMAGES,
    ),
    "gridnet_cnn": Trunk(
        lambda shape, config, noisy: GridNet(shape, plain=True),
        IMAGE, per_cell=True, bfloat16=True, least_rows=_FEW_IMAGES,
    ),
}  # fmt: skip


def trunk_of(name: str) -> Trunk:
    """The record of a network in the table, or of the user's own class `module:Class`.

    A class of the user's own is recurrent where its `forward` takes `state` and `begins`.

    Raises:
        WrongNetwork: where there is none of this name, or the class is no torch module.
    """
    if ":" not in name:
        if name not in TRUNKS:
            raise WrongNetwork(
                f"network {name!r} does not exist: give --network {', '.join(TRUNKS)} or module:Class"
            )
        return TRUNKS[name]
    own = find("network", name, WrongNetwork)
    if not (isinstance(own, type) and issubclass(own, nn.Module)):
        raise WrongNetwork(f"network {name!r} is {own!r}, which is no subclass of nn.Module")
    inputs = inspect.signature(own.forward).parameters
    return Trunk(
        lambda shape, config, noisy: own(shape), None,
        remembers={"state", "begins"} <= set(inputs), blocks=True,
    )  # fmt: skip


def make_trunk(config: Config, obs_shape: tuple[int, ...], noisy: bool = False) -> nn.Module:
    """The run's network, for observations of a shape as the network takes them.

    Raises:
        WrongNetwork: with the names that fit.
    """
    trunk = trunk_of(config.network)
    if trunk.axes not in (None, len(obs_shape)):
        fitting = [name for name, other in TRUNKS.items() if other.axes == len(obs_shape)]
        raise WrongNetwork(
            f"network {config.network} does not fit observations of shape {obs_shape}: give"
            f" --network {', '.join(fitting)} or module:Class"
        )
    try:
        module = trunk.make(obs_shape, config, noisy)
    except UserError:
        raise
    except Exception as error:  # a class of the user's own may raise anything
        raise WrongNetwork(
            f"network {config.network} cannot be made for observations of shape {obs_shape}:"
            f" {type(error).__name__}: {error}"
        ) from error
    if trunk.blocks:
        _refuse_other_rows_and_chance(module, config.network)
        _refuse_types_of_torch_alone(module, config.network)
    return module


def _refuse_types_of_torch_alone(module: nn.Module, name: str) -> None:
    """Weights cross between processes and lie in checkpoints as numpy's arrays."""
    for own, tensor in module.state_dict().items():
        try:
            torch.empty(0, dtype=tensor.dtype).numpy()
        except TypeError:
            raise WrongNetwork(
                f"network {name} has {own} of {tensor.dtype}, which numpy does not have: keep it as"
                f" torch.float32, and convert it in forward"
            ) from None


def _refuse_other_rows_and_chance(module: nn.Module, name: str) -> None:
    """A sampler and the learner must compute the same policy, whatever rows they compute together.

    Layers that were put into `eval` may stay: nobody puts them back.
    """
    for part in module.modules():
        depends = ""
        if isinstance(part, _BatchNorm) and (part.training or not part.track_running_stats):
            depends = "the other observations of a batch"
        elif part.training and (
            (isinstance(part, _DropoutNd) and part.p > 0)
            or (isinstance(part, (nn.MultiheadAttention, nn.RNNBase)) and part.dropout > 0)
        ):
            depends = "chance, by its dropout"
        if depends:
            raise WrongNetwork(
                f"network {name} has a {type(part).__name__}, whose output depends on {depends}: the"
                f" learner would compute another policy than the one that acted. Leave it out, or give"
                f" LayerNorm, or no dropout"
            )


def state_size_of(trunk: Trunk, module: nn.Module, name: str) -> int:
    """S of a recurrent module; 0 of others.

    Raises:
        WrongNetwork: where a recurrent class of the user's own does not say it.
    """
    if not trunk.remembers:
        return 0
    size: Any = getattr(module, "state_size", None)
    if not isinstance(size, int) or size < 1:
        raise WrongNetwork(
            f"network {name} takes a state, but its attribute state_size is {size!r}: it must be the"
            f" number of entries of one environment's state, 1 or more"
        )
    return size


def features_of(
    trunk: Trunk, module: nn.Module, obs_shape: tuple[int, ...], name: str
) -> tuple[int, int]:
    """How many features a network gives for the policy and for values, by a dry run.

    Raises:
        WrongNetwork: where it fails, or gives anything but [B, features] float32.
    """
    size = state_size_of(trunk, module, name)
    past = Past(torch.zeros(2, size), torch.zeros(2, dtype=torch.bool)) if size else None
    try:
        with torch.no_grad():
            features = trunk.run(module, torch.zeros(2, *obs_shape), past)
    except Exception as error:  # as above
        raise WrongNetwork(
            f"network {name} fails on observations [2, {', '.join(map(str, obs_shape))}]:"
            f" {type(error).__name__}: {error}"
        ) from error
    whole: Any = features.whole
    if not isinstance(whole, Tensor) or whole.dim() != 2 or len(whole) != 2:
        raise WrongNetwork(
            f"network {name} gives {_shape(whole)} for 2 observations, not [2, features]"
        )
    for given in (features.policy, whole):
        if given.dtype != torch.float32:
            raise WrongNetwork(
                f"network {name} gives {given.dtype}, but the layers after it are torch.float32: end its"
                f" forward with .float()"
            )
    if size and _shape(features.state) != f"[2, {size}]":
        raise WrongNetwork(
            f"network {name} gives a state {_shape(features.state)} for 2 environments, but its"
            f" state_size asks for [2, {size}]"
        )
    return features.policy.shape[1], whole.shape[1]


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
