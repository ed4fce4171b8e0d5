"""What can be chosen by name: one plain dictionary per kind, then entry points, then `package.module:Name`.

Built-in parts are named by import string, so that listing them imports nothing and the layers stay apart
(fedcl never imports clients or server; it only finds them when a scenario asks for one of their parts).
"""

import importlib
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedcl.errors import ConfigError, nearest, shown
from fedcl.trust import check_import

BUILT_IN: dict[str, dict[str, str]] = {
    "datasets": {
        "digits": "fedcl.streams.datasets:Digits",
        "synthetic": "fedcl.streams.datasets:Synthetic",
        "mnist": "fedcl.streams.idx:MNIST",
        "fashion-mnist": "fedcl.streams.idx:FashionMNIST",
        "idx": "fedcl.streams.idx:IDX",
        "omniglot": "fedcl.streams.omniglot:Omniglot",
        "folder": "fedcl.streams.folder:Folder",
        "local": "fedcl.streams.local:Local",
    },
    "partitions": {
        "iid": "fedcl.streams.partition:IID",
        "dirichlet": "fedcl.streams.partition:Dirichlet",
        "shards": "fedcl.streams.partition:Shards",
        "drawn": "fedcl.streams.partition:Drawn",
    },
    "schedules": {
        "synchronous": "fedcl.streams.schedule:Synchronous",
        "own": "fedcl.streams.schedule:Own",
        "explicit": "fedcl.streams.schedule:Explicit",
        "arrival": "fedcl.streams.schedule:Arrival",
    },
    "models": {
        "linear": "fedcl.models.dense:Linear",
        "mlp": "fedcl.models.dense:MLP",
        "cnn": "fedcl.models.conv:CNN",
        "conv4": "fedcl.models.conv:Conv4",
        "resnet18": "fedcl.models.conv:ResNet18",
    },
    "client_methods": {
        "finetune": "clients.methods:Finetune",
        "frozen": "clients.methods:Frozen",
        "er": "clients.methods:ER",
        "der": "clients.methods:DER",
        "derpp": "clients.methods:DERpp",
        "ewc": "clients.methods:EWC",
        "si": "clients.methods:SI",
        "lwf": "clients.methods:LwF",
        "fedewc": "clients.methods:FedEWC",
        "fedlwf": "clients.methods:FedLwF",
        "agem": "clients.methods:AGEM",
        "gpm": "clients.methods:GPM",
        "fedprox": "clients.methods:FedProx",
        "scaffold": "clients.methods:Scaffold",
        "prototypical": "clients.methods:Prototypical",
    },
    "memories": {
        "reservoir": "clients.memories.reservoir:Reservoir",
        "class-balanced": "clients.memories.class_balanced:ClassBalanced",
    },
    "curricula": {
        "vanilla": "clients.curricula:Vanilla",
        "curr": "clients.curricula.sample:Curr",
        "anti": "clients.curricula.sample:Anti",
        "rand": "clients.curricula.sample:Rand",
        "cyclical": "clients.curricula.cyclical:Cyclical",
        "episodes": "clients.curricula.episodes:Episodes",
    },
    "optimizers": {"sgd": "clients.optimizers:SGD", "adam": "clients.optimizers:Adam"},
    "server_methods": {
        "fedavg": "server.methods.fedavg:FedAvg",
        "fot": "server.methods.fot:FOT",
        "prototypes": "server.methods.prototypes:Prototypes",
        "analytic": "server.methods.analytic:Analytic",
        "fedewc": "server.methods.fedewc:FedEWC",
        "fedlwf": "server.methods.fedlwf:FedLwF",
        "scaffold": "server.methods.scaffold:Scaffold",
        "single-task": "server.methods.single_task:SingleTask",
    },
    "server_optimizers": {
        "sgd": "server.optimizers:SGD",
        "fedavgm": "server.optimizers:FedAvgM",
        "fedadam": "server.optimizers:FedAdam",
    },
    "selections": {"uniform": "server.selection:Uniform", "curriculum": "server.selection:Curriculum"},
}
# The key that chooses within a part, as users write it: partition: {kind: dirichlet}, model: {name: mlp}.
CHOOSER = {"partitions": "kind", "schedules": "kind", "memories": "policy", "curricula": "order"}
# What one of a kind is called, where it is not the kind without its s.
SINGULAR = {"memories": "memory", "curricula": "curriculum"}
# Entry-point groups for outside packages.
GROUPS = {kind: f"fedcl.{kind}" for kind in BUILT_IN}


def chooser(kind: str) -> str:
    """Return the key that holds the name inside a part of `kind`."""
    return CHOOSER.get(kind, "name")


@cache
def outside(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points that installed packages offer for `kind`, by name."""
    return {point.name: point for point in entry_points(group=GROUPS[kind])}


def names(kind: str) -> list[str]:
    """Return every name that can be chosen for `kind`: built-in first, then outside packages."""
    return [*BUILT_IN[kind], *(name for name in outside(kind) if name not in BUILT_IN[kind])]


def _import(reference: str, kind: str) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # it is somebody else's code that runs here
        why = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"cannot import {reference!r} ({kind}): {why}") from error
    if not (isinstance(found, type) and is_dataclass(found)):
        raise ConfigError(f"must name a frozen dataclass of settings, not {shown(found)}")
    return found


def find(kind: str, name: str) -> Any:
    """Return the class registered as `name` in `kind`.

    Args:
        kind: one of the keys of `BUILT_IN`.
        name: a built-in name, an entry point's name, or `package.module:Name`.

    Raises:
        ConfigError: nothing has that name, it cannot be imported, is no dataclass, or a node does not trust it.
    """
    if name in BUILT_IN[kind]:
        return _import(BUILT_IN[kind][name], kind)
    if name in outside(kind):
        return _import(outside(kind)[name].value, kind)
    if ":" in name:
        check_import(name)
        return _import(name, kind)
    singular = SINGULAR.get(kind, kind[:-1]).replace("_", " ")
    raise ConfigError(f"unknown {singular} {name!r}{nearest(name, names(kind))}")


def name_of(kind: str, chosen: object) -> str:
    """Return a name that `find` turns back into the class of `chosen`."""
    cls = type(chosen)
    reference = f"{cls.__module__}:{cls.__qualname__}"
    for name, known in BUILT_IN[kind].items():
        if known == reference:
            return name
    for name, point in outside(kind).items():
        if point.value == reference:
            return name
    return reference
