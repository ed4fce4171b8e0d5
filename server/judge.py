"""The global model on each task's central test items."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import fedcl.models
from fedcl import registry
from fedcl.answers import Layout, Tensors
from fedcl.classifiers import predictor
from fedcl.config import Scenario
from fedcl.models.behaviour import stack_problem
from fedcl.source import Source, measure, sample, source
from fedcl.streams import Stream


@dataclass(frozen=True)
class Judge:
    """The model and the test items, ready to be asked again and again."""

    scenario: Scenario
    stream: Stream
    module: nn.Module
    data: Source

    @staticmethod
    def of(scenario: Scenario, stream: Stream) -> "Judge":
        """Make the model (with its initial weights) and put the test split where it is evaluated."""
        data = stream.dataset
        module = fedcl.models.make(scenario.model, tuple(data.x.shape[1:]), data.classes, scenario.seed)
        device = torch.device(scenario.engine.device)
        dtype: torch.dtype = getattr(torch, scenario.model.dtype)
        return Judge(scenario, stream, module.to(device), source(stream, "test", dtype, device))

    @property
    def notes(self) -> list[str]:
        """What a user should know of the model."""
        shape = tuple(self.stream.dataset.x.shape[1:])
        if self.scenario.engine.stack == 1 or not (problem := stack_problem(self.module, shape)):
            return []
        name = registry.name_of("models", self.scenario.model)
        return [f"model.name = {name!r}: clients are trained one by one, because a stack of them fails in {problem}"]

    @property
    def initial(self) -> Tensors:
        """The module's parameters that train now, copied."""
        return {name: each.detach().cpu().clone() for name, each in fedcl.models.trained(self.module).items()}

    @property
    def fixed(self) -> Tensors:
        """The module's parameters that do not train."""
        return {name: each.cpu() for name, each in fedcl.models.fixed(self.module).items()}

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters that train."""
        return Layout.of(dict(fedcl.models.trained(self.module)))

    def accuracy(self, weights: Tensors, classifier: Tensors) -> tuple[list[float | None], float | None]:
        """Return the accuracy on each task's central test items (None: it has none) and the mean loss over all."""
        with torch.no_grad():
            for name, parameter in fedcl.models.trained(self.module).items():
                parameter.copy_(weights[name])
        limit, seed = self.scenario.evaluate.samples, self.scenario.seed
        cells = [sample(cell, limit, seed, task) for task, cell in enumerate(self.stream.central)]
        sizes = [len(cell) for cell in cells]
        tasks = np.repeat(np.arange(len(cells)), sizes)
        right, losses = measure(predictor(self.module, classifier), self.data, np.concatenate(cells), tasks)
        loss = float(losses.double().mean())
        means = [float(part.double().mean()) if len(part) else None for part in torch.split(right, sizes)]
        return means, loss if np.isfinite(loss) else None
