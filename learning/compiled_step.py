"""A function of tensors as one compiled graph, with as little work around a call as possible."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from networks.tanh import rational_tanh


class _Graph(NamedTuple):
    call: Callable[..., Sequence[Tensor]]
    inputs: list[Any]  # everything that the graph reads: parameters, settings, the batch's tensors
    places: list[int | None]  # where each of the batch's tensors stands in `inputs`; None: unused


class Compiled:
    """A method of one argument, a tuple of tensors and None, that returns one tensor.

    Around a graph torch looks up the tensors that it reads and checks that it is still the right
    one, for longer than a small network takes forward and backward. This class keeps graph and
    inputs from the first call, one for each shape of the batch. Everything else that the method
    reads must therefore be the same object in every call: tensors are changed in place, and
    settings not at all.

    Args:
        method: bound; it may change tensors in place, and differentiate.
        graphs: record it as a CUDA graph; otherwise kernels are called from C++.
    """

    def __init__(self, method: types.MethodType, graphs: bool):
        self._method, self._graphs = method, graphs
        self._compiled: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, batch: tuple[Tensor | None, ...]) -> Tensor:
        shapes = tuple([None if part is None else part.shape for part in batch])
        graph = self._compiled.get(shapes)
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
        # these imports take seconds, which a run that is not compiled is spared
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        parts = [id(part) for part in batch if part is not None]
        assert len(set(parts)) == len(parts), "one tensor object is passed for two fields"

        def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            patches = {"triton.cudagraphs" if self._graphs else "cpp_wrapper": True}
            call: Any = compile_fx(graph, examples, config_patches=patches)

            def first(*inputs: Any) -> Any:
                places = {id(one): place for place, one in enumerate(inputs)}
                of_batch = [None if part is None else places.get(id(part)) for part in batch]
                self._compiled[shapes] = _Graph(call, list(inputs), of_batch)
                return call(*inputs)

            return first

        # torch keeps graphs with a function's code: this one must have its own
        function = self._method.__func__
        own = types.FunctionType(function.__code__.replace(), function.__globals__)
        method = types.MethodType(own, self._method.__self__)
        # torch's cache on disk keeps C++ code that was written for one width of vectors, without the
        # width in its key: on another processor that shares the cache it computes garbage. Nor is
        # the decomposition of tanh in the key
        tag = f"{torch.compiler.config.cache_key_tag} rational tanh {pick_vec_isa()}"
        with (
            torch._dynamo.config.patch(trace_autograd_ops=True),
            torch.compiler.config.patch(cache_key_tag=tag),
            _decomposed(torch.ops.aten.tanh.default, rational_tanh),
        ):
            return torch.compile(method, backend=backend, dynamic=False, fullgraph=True)(batch)


@contextlib.contextmanager
def _decomposed(operator: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Compile an operator as a function of others, in here.

    It is put into the table of the whole process, and taken out again: torch does not cache what is
    compiled with another table.
    """
    from torch._inductor.decomposition import decompositions

    before = decompositions.get(operator)
    decompositions[operator] = function
    try:
        yield
    finally:
        if before is None:
            del decompositions[operator]
        else:
            decompositions[operator] = before
