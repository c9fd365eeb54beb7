"""A function of tensors as one compiled graph, with as little around a call as can be."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from networks.tanh import rational_tanh


class _Graph(NamedTuple):
    call: Callable[..., Sequence[Tensor]]
    inputs: list[Any]  # all that the function reads: parameters, settings, and the batch's tensors
    places: list[int | None]  # where the batch's tensors stand among them; None: it is not read


class Compiled:
    """A method of one argument, a tuple of tensors and None, that returns one tensor.

    Around a graph torch looks up the tensors that it reads and checks that it is still the right
    one, for longer than a small network takes forward and backward. Here graph and inputs are kept
    from the first call, one for each shape of the batch. So all else that the method reads must be
    the same object in every call: tensors are changed in place, and settings not at all.

    Args:
        method: bound; it may change tensors in place, and differentiate.
        graphs: record it as a CUDA graph; otherwise kernels are called from C++.
    """

    def __init__(self, method: types.MethodType, graphs: bool):
        self._method, self._graphs = method, graphs
        self._found: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, batch: tuple[Tensor | None, ...]) -> Tensor:
        shapes = tuple([None if part is None else part.shape for part in batch])
        graph = self._found.get(shapes)
        if graph is None:
            return self._compile(batch, shapes)
        for part, place in zip(batch, graph.places, strict=True):
            if place is not None:
                graph.inputs[place] = part
        if not self._graphs:
            return graph.call(*graph.inputs)[0]
        torch.compiler.cudagraph_mark_step_begin()
        return graph.call(*graph.inputs)[0].clone()  # the next replay writes over it

    def _compile(self, batch: tuple[Tensor | None, ...], shapes: tuple[Any, ...]) -> Tensor:
        """The first call with a batch of these shapes."""
        # takes seconds, which a run that is not compiled is spared
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import decompositions

        parts = [id(part) for part in batch if part is not None]
        assert len(set(parts)) == len(parts), "a batch's tensors are to be told apart"

        def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            kind = "triton.cudagraphs" if self._graphs else "cpp_wrapper"
            call: Any = compile_fx(graph, examples, config_patches={kind: True})

            def first(*inputs: Any) -> Any:
                at = {id(one): place for place, one in enumerate(inputs)}
                places = [None if part is None else at.get(id(part)) for part in batch]
                self._found[shapes] = _Graph(call, list(inputs), places)
                return call(*inputs)

            return first

        decompositions[torch.ops.aten.tanh.default] = rational_tanh
        torch._dynamo.config.trace_autograd_ops = True
        # torch keeps graphs with a function's code: this one is to have its own
        function = self._method.__func__
        own = types.FunctionType(function.__code__.replace(), function.__globals__)
        method = types.MethodType(own, self._method.__self__)
        return torch.compile(method, backend=backend, dynamic=False, fullgraph=True)(batch)
