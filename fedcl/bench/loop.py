"""The loop that everybody would write: one client after another, torch.optim.SGD, a running weighted sum."""

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedcl.bench import crew, work
from fedcl.bench.crew import Flat, Share
from fedcl.bench.spec import Spec, Told, Watch

SHARE = f"{__name__}:share"


def share(spec: Spec, part: int, parts: int) -> Share:
    """Return the training of one share of each round."""
    given, lr = spec.loaded(), spec.scenario.client.optimizer.lr
    model = given.model(spec.scenario)
    x, y = given.inputs, given.labels

    def train(number: int, weights: Flat) -> Flat:
        start = torch.from_numpy(weights)
        total = torch.zeros_like(start)
        for visit in work.share(given.rounds[number], part, parts):
            vector_to_parameters(start.clone(), model.parameters())
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            for step in map(torch.from_numpy, visit.steps):
                optimizer.zero_grad()
                cross_entropy(model(x[step]), y[step]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                total.add_(parameters_to_vector(model.parameters()) - start, alpha=visit.n)
        return total.numpy()

    return train


def run(spec: Spec, watch: Watch) -> Told:
    """Run the loop in this process."""
    return crew.run_alone(SHARE, spec, watch)


def run_shared(spec: Spec, watch: Watch) -> Told:
    """Run the loop in as many processes as fedcl has workers."""
    return crew.run_shared(SHARE, spec, watch)
