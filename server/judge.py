"""The global model on each task's central test items."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import fedcl.models
from fedcl.answers import Layout, Tensors
from fedcl.classifiers import predictor
from fedcl.config import Scenario
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
    def initial(self) -> Tensors:
        """The module's parameters now, copied."""
        return {name: each.detach().cpu().clone() for name, each in self.module.named_parameters()}

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters."""
        return Layout.of(dict(self.module.named_parameters()))

    def accuracy(self, weights: Tensors, classifier: Tensors) -> tuple[list[float | None], float | None]:
        """Return the accuracy on each task's central test items (None: it has none) and the mean loss over all."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(weights[name])
        limit, seed = self.scenario.evaluate.samples, self.scenario.seed
        cells = [sample(cell, limit, seed, task) for task, cell in enumerate(self.stream.central)]
        sizes = [len(cell) for cell in cells]
        tasks = np.repeat(np.arange(len(cells)), sizes)
        right, losses = measure(predictor(self.module, classifier), self.data, np.concatenate(cells), tasks)
        loss = float(losses.double().mean())
        means = [float(part.double().mean()) if len(part) else None for part in torch.split(right, sizes)]
        return means, loss if np.isfinite(loss) else None
