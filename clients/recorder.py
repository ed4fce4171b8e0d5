"""What PyTorch does while a function runs, as a graph of plain tensor operations: below autograd and vmap."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., list[Tensor]]
_REFUSED = (  # what the next batch may do otherwise
    torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded,
)  # fmt: skip


class Unrecordable(RuntimeError):
    """An operation whose result, or whose shape, is no function of the shapes and numbers that a graph can hold."""


def recorded(function: Function, inputs: list[Tensor]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Run a function and return its operations on inputs, and the tensors that it has from elsewhere by name.

    Nodes have their result as `meta["val"]`. The function is run, and may write into the inputs.

    Raises:
        Unrecordable: it reads a number, draws one, or makes a tensor whose shape depends on numbers.
    """
    recorder = _Recorder(inputs)
    with recorder:
        found = function(*inputs)
    recorder.graph.output([recorder.node(each) for each in found])
    return recorder.graph, recorder.constants


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation after autograd and vmap have made plain ones of it."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = fx.Graph(), dict[str, Tensor]()
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}  # with the tensor: an id may be used again once it is freed
        for number, each in enumerate(inputs):
            self._keep(each, self.graph.placeholder(f"input_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: PyTorch's compiler has no part in this, and to import it takes more than a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(tag in func.tags for tag in _REFUSED):
            raise Unrecordable(f"{func} does not depend on shapes alone")
        given = _pytree.tree_map_only(Tensor, self.node, (tuple(args), dict(kwargs or {})))
        result = func(*args, **(kwargs or {}))
        node = self.graph.call_function(func, *given)
        if isinstance(result, Tensor):
            self._keep(result, node)
        elif isinstance(result, (tuple, list)):
            for place, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._keep(each, self.graph.call_function(operator.getitem, (node, place)))
        elif result is not None:
            raise Unrecordable(f"{func} returns no tensor")
        return result

    def node(self, tensor: Tensor) -> fx.Node:
        """Return where a tensor comes from; what no operation has made is a constant."""
        if id(tensor) not in self._nodes:
            name = f"given_{len(self.constants)}"
            self.constants[name] = tensor
            self._keep(tensor, self.graph.get_attr(name))
        return self._nodes[id(tensor)][1]

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["val"] = tensor
        self._nodes[id(tensor)] = tensor, node
