"""A function of tensors as one compiled graph, with as little work around a call as possible."""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.sources import digest
from learning import kept_step
from learning.native import Native, framed
from networks import tanh
from networks.tanh import rational_tanh

Batch = tuple[Tensor | None, ...]  # the method's argument
Steps = Callable[[Sequence[Sequence[Batch]]], list[Tensor]]


class _Graph(NamedTuple):
    # of the inputs of a call, which gives a sequence of one output; a `Native`, which takes several calls
    # too, where the graph needs nothing of torch's around it
    call: Callable[[list[Any]], Sequence[Tensor]]
    inputs: list[Any]  # everything that the graph reads: parameters, settings, the batch's tensors
    places: list[int | None]  # where each of the batch's tensors stands in `inputs`; None: unused

    @property
    def native(self) -> Native | None:
        return self.call if isinstance(self.call, Native) else None

    def inputs_for(self, batch: Batch) -> list[Any]:
        """The inputs of a call with a batch: the same list each time."""
        for part, place in zip(batch, self.places, strict=True):
            if place is not None:
                self.inputs[place] = part
        return self.inputs


class Compiled:
    """A method of one argument, a tuple of tensors and None, that returns one tensor.

    Around a graph torch looks up the tensors that it reads and checks that it is still the right
    one, for longer than a small network takes forward and backward. This class keeps graph and
    inputs from the first call, one for each shape of the batch. Everything else that the method
    reads must therefore be the same object in every call: tensors are changed in place, and
    settings not at all.

    Args:
        method: bound; it may change tensors in place, and differentiate.
        on_gpu: whether its tensors are on one; otherwise kernels are called from C++.
        tensors: all that it reads and changes beside the batch, by name.
        settings: all others that it reads, as JSON can hold them; they tell what is compiled apart
            from what else is kept on this machine (`kept_step`). None: nothing is kept.
        compiles_here: called where nothing was kept; whether to compile then and there. Where another
            process compiles, the method runs as it is until `take_kept` finds what that one has kept.
    """

    def __init__(
        self,
        method: types.MethodType,
        on_gpu: bool,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any] | None = None,
        compiles_here: Callable[[], bool] = lambda: True,
    ):
        self._method, self._on_gpu, self._tensors = method, on_gpu, tensors
        self._settings = None if on_gpu else settings
        self._compiles_here = compiles_here
        self._compiled: dict[tuple[Any, ...], _Graph] = {}
        # by its shapes, a batch of each kind that another process compiles for
        self._awaited: dict[tuple[Any, ...], Batch] = {}

    def __call__(self, batch: Batch) -> Tensor:
        return self.each([batch])[0]

    def each(self, batches: Sequence[Batch]) -> list[Tensor]:
        """What the method returns for each of some batches of the same shapes.

        On the CPU they are computed at once, on threads: see `learning.native`.
        """
        graph, shapes = self._graph(batches[0]), _shapes(batches[0])
        if graph is None and shapes not in self._awaited:
            if self._compiles_here():
                first = self._compile(batches[0], shapes)
                return [first, *[self(batch) for batch in batches[1:]]]
            assert self._settings is not None, "no other process can keep it for this one"
            self._awaited[shapes] = batches[0]
        if graph is None:
            return [self._method(batch) for batch in batches]
        if graph.native is not None:
            return graph.native([one for batch in batches for one in graph.inputs_for(batch)])
        return [graph.call(graph.inputs_for(batch).copy())[0] for batch in batches]

    def native_with(
        self, second: Compiled, shares: Sequence[Batch], outputs: Batch
    ) -> Steps | None:
        """Steps of this method on shares of a minibatch, and of a second one on what it returns for them.

        Args:
            second: a method of these outputs.
            shares: of one minibatch, for their shapes.
            outputs: tensors like those that the method returns for these.

        Returns:
            a function of the shares of some minibatches, which returns what the second method returns
            for each; None where one of them is not compiled yet, or cannot be called without torch.
        """
        graph, other = self._graph(shares[0]), second._graph(outputs)
        if graph is None or graph.native is None or other is None or other.native is None:
            return None
        first, then, places = graph.native, other.native, other.places

        def steps(minibatches: Sequence[Sequence[Batch]]) -> list[Tensor]:
            batches = [share for shares in minibatches for share in shares]
            inputs = [one for batch in batches for one in graph.inputs_for(batch)]
            return first.steps(inputs, then, other.inputs, [p for p in places if p is not None])

        return steps

    def take_kept(self) -> bool:
        """Take what another process has kept by now; whether that is all that is awaited of it."""
        for shapes, batch in list(self._awaited.items()):
            if self._kept(batch, shapes) is not None:
                del self._awaited[shapes]
        return not self._awaited

    def _graph(self, batch: Batch) -> _Graph | None:
        """The graph for batches like this one, if it is there."""
        shapes = _shapes(batch)
        if shapes in self._awaited:
            return None
        return self._compiled.get(shapes) or self._kept(batch, shapes)

    def _name(self, batch: Batch) -> str:
        """What the graph for batches of these shapes is kept by."""
        assert self._settings is not None
        parts = {f"batch {n}": part for n, part in enumerate(batch) if part is not None}
        return kept_step.name_of(
            self._method.__qualname__, self._settings, {**self._tensors, **parts}
        )

    def _kept(self, batch: Batch, shapes: tuple[Any, ...]) -> _Graph | None:
        """The graph that an earlier run has kept, if there is one."""
        kept = None if self._settings is None else kept_step.load(self._name(batch))
        if kept is None:
            return None
        inputs = [batch[i] if isinstance(i, int) else self._tensors[i] for i in kept.inputs]
        graph = self._compiled[shapes] = _Graph(kept.native, inputs, _places(batch, inputs))
        return graph

    def _compile(self, batch: Batch, shapes: tuple[Any, ...]) -> Tensor:
        """The first call with a batch of these shapes."""
        # these imports take seconds, which a run that is not compiled is spared
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        parts = [id(part) for part in batch if part is not None]
        assert len(set(parts)) == len(parts), "one tensor object is passed for two fields"
        for tensor in self._tensors.values():
            torch._dynamo.mark_static_address(tensor)

        def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
            patches = {} if self._on_gpu else {"cpp_wrapper": True}
            call: Any = compile_fx(graph, examples, config_patches=patches)

            def first(*inputs: Any) -> Any:
                self._compiled[shapes] = _Graph(
                    lambda these: call(*these), list(inputs), _places(batch, inputs)
                )
                with _watched() as calls:
                    result = call(*inputs)
                if self._settings is not None:
                    self._keep(batch, shapes, calls)
                return result

            return first

        # torch keeps graphs with a function's code: this one must have its own
        function = self._method.__func__
        own = types.FunctionType(function.__code__.replace(), function.__globals__)
        method = types.MethodType(own, self._method.__self__)
        # torch's cache on disk keeps C++ code that was written for one width of vectors, without the
        # width in its key: on another processor that shares the cache it computes garbage. Nor is
        # the decomposition of tanh in the key
        decomposed = digest({"tanh": Path(tanh.__file__).read_bytes()})
        tag = f"{torch.compiler.config.cache_key_tag} tanh {decomposed} {pick_vec_isa()}"
        with (
            torch._dynamo.config.patch(trace_autograd_ops=True),
            torch.compiler.config.patch(cache_key_tag=tag),
            _decomposed(torch.ops.aten.tanh.default, rational_tanh),
            _quiet() if self._on_gpu else framed(),
        ):
            return torch.compile(method, backend=backend, dynamic=False, fullgraph=True)(batch)

    def _keep(self, batch: Batch, shapes: tuple[Any, ...], calls: list[_NativeCall]) -> None:
        """Keep the graph for later runs, and call it from now on as they do."""
        names: dict[int, str | int] = {id(tensor): name for name, tensor in self._tensors.items()}
        names |= {id(part): place for place, part in enumerate(batch) if part is not None}
        if len(calls) != 1 or not all(id(tensor) in names for tensor in calls[0].inputs):
            return  # such as a graph with constants of its own
        native, inputs = Native(calls[0].module), calls[0].inputs
        kept_step.keep(self._name(batch), native, [names[id(tensor)] for tensor in inputs])
        self._compiled[shapes] = _Graph(native, inputs, _places(batch, inputs))


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple([None if part is None else part.shape for part in batch])


def _places(batch: Sequence[Tensor | None], inputs: Sequence[Any]) -> list[int | None]:
    """Where each of the batch's tensors stands among a graph's inputs; None: it is unused."""
    places = {id(one): place for place, one in enumerate(inputs)}
    return [None if part is None else places.get(id(part)) for part in batch]


class _NativeCall(NamedTuple):
    """A call of a compiled module's function."""

    module: types.ModuleType
    inputs: list[Tensor]


@contextlib.contextmanager
def _watched() -> Iterator[list[_NativeCall]]:
    """The calls of compiled modules' functions in here, which torch's wrappers hide otherwise.

    The Python function around each of them is written by torch: it turns its tensors into addresses
    and hands them to `f`.
    """
    calls: list[_NativeCall] = []
    native = torch._C._aoti
    addresses_of = native.unsafe_alloc_void_ptrs_from_tensors

    def watch(tensors: list[Tensor]) -> Any:
        calls.append(_NativeCall(sys._getframe(1).f_locals["f"].__self__, list(tensors)))
        return addresses_of(tensors)

    native.unsafe_alloc_void_ptrs_from_tensors = watch
    try:
        yield calls
    finally:
        native.unsafe_alloc_void_ptrs_from_tensors = addresses_of


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's compiler for GPUs tells its own developers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        warnings.filterwarnings("ignore", "\\s*Online softmax is disabled")
        yield


@contextlib.contextmanager
def _decomposed(operator: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Compile an operator as a function of others, in here.

    It is put into the table of the whole process, and taken out again: torch does not cache what is
    compiled with another table. Torch keeps a copy of the table from the first compilation on; if a
    user's own came before this one, the function would not be in it.
    """
    from torch._inductor.decomposition import decompositions, fast_random_decomps

    before = decompositions.get(operator)
    decompositions[operator] = function
    fast_random_decomps.cache_clear()
    try:
        yield
    finally:
        if before is None:
            del decompositions[operator]
        else:
            decompositions[operator] = before
        fast_random_decomps.cache_clear()
