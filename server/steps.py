"""From a round's answers to new weights: the method, the server optimiser, the projection; each step must fit.

A step of another shape could be broadcast onto the weights, and one of another precision would change theirs.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedcl import registry
from fedcl.answers import Answer, Tensors
from fedcl.config import ServerConfig
from fedcl.errors import FederationError, nearest
from server.state import State


def updated(server: ServerConfig, state: State, total: Answer) -> State:
    """Return the state after a round's step.

    Args:
        total: the sum of the accepted answers.

    Raises:
        FederationError: the method or the server optimiser returns what does not fit the weights.
    """
    method, step = server.method.end_round(state.method, state.weights, total)
    step = fitting(step, state.weights, _of("server_methods", server.method, "end_round returns a step"))
    moments, step = server.optimizer.apply(state.optimizer, step)
    step = fitting(step, state.weights, _of("server_optimizers", server.optimizer, "apply returns a step"))
    step = server.method.project(method, step)
    step = fitting(step, state.weights, _of("server_methods", server.method, "project returns a step"))
    weights = {name: weight + step[name] for name, weight in state.weights.items()}
    return replace(state, method=method, optimizer=moments, weights=weights)


def new_weights(server: ServerConfig, found: Tensors, weights: Tensors, hook: str) -> Tensors:
    """Return weights that the server method's `hook` has returned, if they fit those of before.

    Raises:
        FederationError: they do not.
    """
    return fitting(found, weights, _of("server_methods", server.method, f"{hook} returns weights"))


def fitting(found: Tensors, weights: Mapping[str, torch.Tensor], what: str) -> Tensors:
    """Return tensors if they are those of the weights by name, shape and dtype.

    Args:
        what: the beginning of the sentence that tells what is wrong.

    Raises:
        FederationError: they are not.
    """
    if not isinstance(found, Mapping):
        raise FederationError(f"{what} that is a {type(found).__name__}: must be a dict of tensors by parameter name")
    for name, weight in weights.items():
        if name not in found:
            raise FederationError(f"{what} without {name!r}{nearest(name, found)}")
        each = found[name]
        if not isinstance(each, torch.Tensor) or each.shape != weight.shape or each.dtype != weight.dtype:
            given = f"{tuple(each.shape)} {each.dtype}" if isinstance(each, torch.Tensor) else type(each).__name__
            raise FederationError(
                f"{what} whose {name!r} is {given}: must be {tuple(weight.shape)} {weight.dtype}, as the weights are"
            )
    for name in found:
        if name not in weights:
            raise FederationError(f"{what} with {name!r}, which no parameter is called{nearest(name, weights)}")
    return found


def _of(kind: str, chosen: object, what: str) -> str:
    key = {"server_methods": "server.method", "server_optimizers": "server.optimizer"}[kind]
    return f"{key} = {registry.name_of(kind, chosen)!r}: {what}"
