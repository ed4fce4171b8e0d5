"""What a recorded step can do without: operations that do nothing, constants, products that lie the wrong way round."""

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Node = Any  # torch.fx.Node, whose arguments may be anything
_SAME = (aten.detach.default, aten.alias.default)
_SHAPED = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default)
_VIEWS = (
    aten.view.default, aten.expand.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.permute.default, aten.slice.Tensor, aten.select.int,
)  # fmt: skip
_INTO = (aten.add_.Tensor, aten.copy_.default, aten._foreach_add_.List)  # what is added or written to keeps its place
_ELEMENTWISE = (
    *_INTO, aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.neg.default,
    aten.div.Tensor, aten.addcmul_.default,
)  # fmt: skip
# What may write into its first tensor instead of a new one; sums and products do not mind which of two is the first.
_IN_PLACE = {
    aten.add.Tensor: "add_", aten.mul.Tensor: "mul_", aten.sub.Tensor: "sub_", aten.div.Tensor: "div_",
    aten.mul.Scalar: "mul_", aten.neg.default: "neg_", aten.relu.default: "relu_", aten.sqrt.default: "sqrt_",
}  # fmt: skip
_DONE_IN_PLACE = [getattr(Tensor, name) for name in _IN_PLACE.values()]
_FRESH = (  # what always makes a tensor that shares memory with no other
    aten.bmm.default, aten.mm.default, aten.addmm.default, aten.sum.dim_IntList, aten.mean.dim,
    aten.threshold_backward.default, aten._log_softmax.default, aten.convolution.default,
)  # fmt: skip
_EITHER = (aten.add.Tensor, aten.mul.Tensor)
_CONSTANT = (
    aten.scalar_tensor.default, aten.ones_like.default, aten.zeros_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.full.default, aten.arange.default,
)  # fmt: skip


def tidied(graph: fx.Graph, constants: dict[str, Tensor], *, turn: bool) -> fx.GraphModule:
    """Drop operations that do nothing, compute once what is always the same, and return what is left.

    Args:
        turn: turn transposed products even where that gives other roundings.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    _turned(graph, turn)
    folded = _folded(graph)
    _shared_views(graph)
    graph.eliminate_dead_code(_acts)
    _reused(graph)
    for node in graph.nodes:
        _shorten(node)
        node.meta.clear()  # the tensors of the recording
    return fx.GraphModule({**constants, **folded}, graph)


def _shared_views(graph: fx.Graph) -> None:
    """Look at one tensor in one way once."""
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _VIEWS and not node.kwargs:
            key = (node.target, *(tuple(each) if isinstance(each, list) else each for each in node.args))
            if known.setdefault(key, node) is not node:
                node.replace_all_uses_with(known[key])
                graph.erase_node(node)


def _reused(graph: fx.Graph) -> None:
    """Write into a tensor that nobody reads any more instead of a new one of the same form: less memory to go through.

    In-place operations are those of `_IN_PLACE`, with the very same arithmetic.
    """
    for node in graph.nodes:
        if node.target not in _IN_PLACE or node.kwargs:
            continue
        places = (0, 1) if node.target in _EITHER else (0,)
        for place in places:
            if _spent(node.args[place], node):
                node.args = (node.args[place], *node.args[:place], *node.args[place + 1 :])
                node.target = getattr(Tensor, _IN_PLACE[node.target])
                break


def _spent(given: Any, node: Node) -> bool:
    """Return whether an operation is the only reader of a new tensor that lies as its result does."""
    if not isinstance(given, fx.Node) or given.op != "call_function" or len(given.users) != 1:
        return False
    target, mine, result = given.target, given.meta["val"], node.meta["val"]
    fresh = target in _FRESH or target in _IN_PLACE or target in _DONE_IN_PLACE
    return bool(
        fresh and mine.shape == result.shape and mine.stride() == result.stride() and mine.dtype == result.dtype
    )


def _shorten(node: Node) -> None:
    """Call PyTorch's own Python function for an operation, if it has one: in half the time."""
    target = node.target
    if target is aten.slice.Tensor and len(node.args) == 4:  # no function has its name
        x, dim, start, stop = node.args
        size = node.meta["val"].shape[dim]
        if stop - start == size:
            node.target, node.args = torch.narrow, (x, dim, start, size)
    elif isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = target._schema.name.removeprefix("aten::")
        node.target = getattr(torch._C._VariableFunctions, name, getattr(Tensor, name, target))


def _acts(node: Node) -> bool:
    """Return whether an operation counts although nobody reads its result: it writes into a tensor."""
    return node.op in ("placeholder", "output") or _writes(node)


def _does_nothing(node: Node) -> bool:
    before = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    after = node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    if node.target in _SAME:
        return True
    if node.target is aten.mul.Scalar:  # the bias under vmap
        return bool(node.args[1] == 1 and after.dtype == before.dtype)
    return node.target in _SHAPED and bool(before.shape == after.shape and before.stride() == after.stride())


def _like(node: Node) -> Tensor:
    """Return some tensor of a result's shape: what is made of it depends on nothing else."""
    value = node.meta["val"]
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def _folded(graph: fx.Graph) -> dict[str, Tensor]:
    """Put tensors that depend on shapes alone in the place of what computes them, where nothing is written to them.

    Return them by name.
    """
    found: dict[str, Tensor] = {}
    constant: dict[Node, Tensor] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _writes(node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        if any(_writes(user) for user in node.users):
            continue
        if node.target in _CONSTANT:
            given = [_like(each) if isinstance(each, fx.Node) else each for each in node.args]
        elif node.all_input_nodes and all(each in constant for each in node.all_input_nodes):
            given = [constant.get(each, each) if isinstance(each, fx.Node) else each for each in node.args]
        else:
            continue
        constant[node] = node.target(*given, **node.kwargs)
    for number, (node, value) in enumerate(constant.items()):
        if any(user not in constant for user in node.users):
            name = f"constant_{number}"
            found[name] = value
            with graph.inserting_before(node):
                fresh = graph.get_attr(name)
            fresh.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(fresh)
    return found


def _turned(graph: fx.Graph, always: bool) -> None:
    """Write a transposed product (A B)^T as B^T A^T, which lies as it is wanted, where that gives the same bits."""
    for node in list(graph.nodes):
        product = node.args[0] if node.target is aten.transpose.int else None
        if not isinstance(product, fx.Node) or product.target is not aten.bmm.default or len(product.users) != 1:
            continue
        left, right = product.args
        if not _one_by_one(node) or not (always or _turns(left, right)):
            continue
        with graph.inserting_before(node):
            turned = tuple(graph.call_function(aten.transpose.int, (each, 1, 2)) for each in (right, left))
            fresh = graph.call_function(aten.bmm.default, turned)
        fresh.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(fresh)
        graph.erase_node(node)


def _one_by_one(node: Node) -> bool:
    """Return whether nothing is made of a result but number by number, so that it does not matter how it lies."""
    return all(
        user.op == "output" or (user.target in _ELEMENTWISE and (user.target in _INTO or _one_by_one(user)))
        for user in node.users
    )


def _turns(left: Node, right: Node) -> bool:
    """Try with numbers as they lie there; libraries add up small products in another order when they are turned."""
    drawn = torch.Generator().manual_seed(0)
    one, other = (
        torch.randn(each.shape, generator=drawn, dtype=each.dtype).to(each.device).as_strided(each.shape, each.stride())
        for each in (left.meta["val"], right.meta["val"])
    )
    return torch.equal(torch.bmm(one, other).mT, torch.bmm(other.mT, one.mT))


def _writes(node: Node) -> bool:
    """Return whether an operation writes into a tensor; `getitem`, of several results, does not."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
