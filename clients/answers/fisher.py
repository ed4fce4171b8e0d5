"""The diagonal of the empirical Fisher information: the sum over samples of (d log p(y | x) / d w)^2, y as labelled.

Each sample's gradient is taken apart (vmap over grad), the model in its evaluation mode, classes masked as the task
masks them. The sum is in float64.
"""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from clients.answers.case import CHUNK, Case
from fedcl.answers import Tensors
from fedcl.models import trained

NUMBERS = 2**23  # gradients held at a time


def squared_gradients(case: Case) -> Tensor:
    """Return the flat sums (P,) over one client's data of a task."""
    module, layout = case.module, case.parameters
    weights = {name: each.detach() for name, each in trained(module).items()}

    def loss(parameters: Tensors, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        logits = functional_call(module, parameters, (x[None],)) + mask
        return cross_entropy(logits, y[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="error")
    chunk = max(1, min(CHUNK, NUMBERS // layout.size))
    total = torch.zeros(layout.size, dtype=torch.float64, device=case.items.device)
    training = module.training
    module.eval()
    for items, tasks in zip(torch.split(case.items, chunk), torch.split(case.tasks, chunk), strict=True):
        each = gradients(weights, case.data.inputs(items, tasks), case.data.y[items], case.data.mask(tasks))
        total += layout.flatten(each).double().square().sum(0)
    module.train(training)
    return total


def fisher_sums(case: Case) -> Tensor:
    """Return the flat sums, then the number of samples (FedEWC)."""
    sums = squared_gradients(case)
    return torch.cat([sums, sums.new_tensor([len(case.items)])])
