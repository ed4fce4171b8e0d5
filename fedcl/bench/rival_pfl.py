"""Apple's pfl (arXiv:2404.06430): FederatedAveraging over SimulatedBackend, one process, one model for all users.

Each visit is a user of its own whose items lie in the order of our batches; pfl cuts them into batches in that order.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedcl.bench.spec import Spec, Told, Watch
from fedcl.bench.work import Visit, Work
from fedcl.errors import FederationError

NEVER = 1_000_000_000  # rounds between evaluations; only round 0, which is warm-up, has one


def run(spec: Spec, watch: Watch) -> Told:
    """Run all rounds.

    Raises:
        FederationError: other users were trained than those that were asked.
    """
    os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")
    from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
    from pfl.callback.base import TrainingProcessCallback
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl expects that there is one
    work, client = spec.loaded(), spec.scenario.client
    module, trained = _module(work.model(spec.scenario)), list[int]()

    class Marks(TrainingProcessCallback):  # type: ignore[misc]  # pfl is untyped
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            watch.mark()
            return super().after_central_iteration(metrics, model, central_iteration=central_iteration)  # type: ignore[no-any-return]

    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    parameters = NNAlgorithmParams(
        central_num_iterations=len(work.rounds), evaluation_frequency=NEVER, train_cohort_size=spec.clients,
        val_cohort_size=0,
    )  # fmt: skip
    local = NNTrainHyperParams(
        local_num_epochs=client.epochs, local_learning_rate=client.optimizer.lr, local_batch_size=client.batch
    )
    backend = _backend(work, trained.append)
    watch.begin()
    FederatedAveraging().run(
        parameters, backend, model, local, NNEvalHyperParams(local_batch_size=None), [Marks()],
        send_metrics_to_platform=False,
    )  # fmt: skip
    expected = [visit.client for each in work.rounds for visit in each]
    if trained != expected:
        raise FederationError(f"pfl trained {len(trained)} users of {len(expected)}")
    return Told(updates=work.updates, weights={name: each.detach().numpy() for name, each in module.named_parameters()})


def _module(module: nn.Module) -> nn.Module:
    """Give a module the two methods that pfl asks for."""
    from pfl.metrics import Weighted

    def loss(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self(x), y)

    def metrics(self: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"loss": Weighted(float(cross_entropy(self(x), y)) * len(y), len(y))}

    for name, function in (("loss", loss), ("metrics", metrics)):
        setattr(module, name, MethodType(function, module))
    return module


def _backend(work: Work, trained: Callable[[int], None]) -> Any:
    """Return the backend that trains exactly our visits, in our order, weighted by their items."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset

    everyone: Iterator[Visit] = (visit for each in work.rounds for visit in each)
    x, y = work.inputs, work.labels

    def dataset(visit: Visit) -> Any:
        trained(visit.client)
        items = torch.from_numpy(visit.items)
        return Dataset((x[items], y[items]), user_id=str(visit.client))

    users = FederatedDataset(dataset, lambda: next(everyone))
    return SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
