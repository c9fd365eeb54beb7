"""Export a policy for other programs: `python evaluate.py RUN_DIR --export policy.onnx` or `policy.pt2`.

The file is one step of acting greedily, as evaluate.py plays, in N environments; N is free. The
observation normaliser, the masks of actions, their bounds and the network's state are inside.

    input        shape            what
    obs          [N, ...]         as this project gives it to a policy (docs/training.md): uint8 for images,
                                  channels first, else float32
    action_mask  [N, A] bool      the legal actions, where the environment says them
    state        [N, S] float32   of a recurrent network: 0 where an episode begins

    output       shape            what
    action       [N, ...]         as the environment takes it, choices counted from 0
    next_state   [N, S] float32   of a recurrent network: the next step's `state`
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from common.errors import UserError
from common.files import replacing
from model import ActorCritic
from networks.layers import NoisyLinear
from networks.trunks import Past
from settings.config import Config

_NEEDED = ("onnx", "onnxscript")


class BadExport(UserError):
    """A policy that cannot be exported, or a file that cannot be written. The message says why."""


class GreedyPolicy(nn.Module):
    """A model's actor as a plain module: its own parameters, and nothing compiled or padded."""

    def __init__(self, model: ActorCritic):
        super().__init__()
        self._trunk, self._distribution = model.trunk, model.distribution
        self._observations = model.observations
        self.actor, self.policy_head = model.actor, model.policy_head
        self.moments, self.log_std = model.moments, model.log_std

    def forward(
        self, obs: Tensor, action_mask: Tensor | None = None, state: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The outputs by name; see the module's table."""
        observations, distribution = self._observations, self._distribution
        if observations.privileged:  # the critic's part, which the policy does not see
            obs = pad(obs, (0, observations.privileged))
        past = None
        if state is not None:
            assert len(obs) == len(state)  # or one row would be traced as a case of its own
            past = Past(state, torch.zeros(len(obs), dtype=torch.bool))  # a state of 0 begins
        seen = observations.for_policy(observations(obs))
        features = self._trunk.run(self.actor, seen, past)
        params = distribution.shaped(self.policy_head(features.policy), self.log_std)
        action = distribution.choose(params, action_mask, None).action
        outputs = {"action": distribution.to_env_tensor(action)}
        if features.state is not None:
            outputs["next_state"] = features.state
        return outputs


def export(model: ActorCritic, config: Config, path: Path) -> None:
    """Write a run's policy as an ONNX model (`.onnx`) or as a program of torch.export (`.pt2`).

    Raises:
        BadExport: for another suffix, a package that is missing, a network of the user's own that
            cannot be traced, or a file that cannot be written.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise BadExport(f"export {path} must be an ONNX model, a program of torch.export or a folder:"
                        f" give a name that ends with .onnx or .pt2, or one without a dot")  # fmt: skip
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise BadExport(f"export {path} needs {' and '.join(missing)}, not installed: run `make"
                        f" export`, or give a name that ends with .pt2")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about its own code
        program = _traced(model, config.network)
        onnx = path.suffix == ".onnx"
        content = _as_onnx(program, config.network) if onnx else _as_program(program)
    with replacing(path, partial(_cannot_write, path)) as part:
        try:
            part.write_bytes(content)
        except OSError as error:
            raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> BadExport:
    return BadExport(f"export {path} cannot be written: {error.strerror}")


def _traced(model: ActorCritic, network: str) -> torch.export.ExportedProgram:
    """The policy's operations."""
    spaces = model.spaces
    shape = list(spaces.observation.shape)
    shape[-1] -= spaces.privileged
    dtype = torch.uint8 if len(shape) == 3 else torch.float32  # as a rollout holds them
    inputs = {"obs": torch.zeros(2, *shape, dtype=dtype)}
    if spaces.masks:
        inputs["action_mask"] = torch.ones(2, model.distribution.env_mask_size, dtype=torch.bool)
    if model.state_sizes:  # the actor's; the critic's follows it
        inputs["state"] = torch.zeros(2, model.state_sizes[0])
    axes = {name: {0: torch.export.Dim("N")} for name in inputs}
    try:
        policy = copy.deepcopy(GreedyPolicy(model)).requires_grad_(False)
        for parameter in policy.parameters():  # those that lie as channels_last cannot be saved
            parameter.data = parameter.contiguous()
        with NoisyLinear.quiet(m for m in policy.modules() if isinstance(m, NoisyLinear)):
            # strict: otherwise len() of a tensor would be a constant
            return torch.export.export(policy, (), inputs, dynamic_shapes=axes, strict=True)
    except Exception as error:  # a network of the user's own may do anything
        raise BadExport(
            f"network {network} cannot be traced by torch.export, so it cannot be exported:"
            f" {_first_line(error)}"
        ) from error


def _as_program(program: torch.export.ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _as_onnx(program: torch.export.ExportedProgram, network: str) -> bytes:
    # its warnings are of operators that it lacks, such as torchvision's, whether they are used or not
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    outputs = ["action", "next_state"][: len(program.graph_signature.user_outputs)]
    try:
        onnx: Any = torch.onnx.export(program, output_names=outputs, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise BadExport(
            f"network {network} cannot be put in terms of ONNX:"
            f" {_first_line(error.__cause__ or error)}; give a name that ends with .pt2"
        ) from error
    onnx.rename_axes({onnx.model.graph.inputs[0].shape[0]: "N"})
    return onnx.model_proto.SerializeToString()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
