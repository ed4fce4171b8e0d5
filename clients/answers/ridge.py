"""Sums for ridge regression on features (ACIL, arXiv:2205.14922; AFL, arXiv:2405.16240): Phi^T Phi and Phi^T Y.

Phi (n, d) are the features of a frozen embedding, or relu(f R) with a fixed random R; Y (n, classes) is one-hot. In
float64, the upper triangle alone, with the embedding's fingerprint (`fedcl.embedding`). With `model.dtype: float32` the
features themselves are rounded, and a sample's last bits depend on the batch that it passes through the model with.
"""

import torch
from torch import Tensor

from clients.answers.case import Case, features_of
from fedcl.answers import LAYOUTS
from fedcl.embedding import fingerprint, random_features
from fedcl.models import trained


@torch.no_grad()
def ridge(case: Case) -> Tensor:
    """Return the flat sums and counts of one client's data of a task."""
    layout, method = LAYOUTS["ridge"](case.parameters, case.method), case.method
    flat = torch.zeros(layout.size, dtype=torch.float64, device=case.items.device)
    total = layout.views(flat)
    d = len(total["ridge/cross"])
    gram = flat.new_zeros(d, d)
    for x, y in case.labelled():
        phi = random_features(features_of(case.module, x), method.draw, method.width)
        gram += phi.T @ phi
        total["ridge/cross"].index_add_(1, y, phi.T)
        total["ridge/count"] += y.bincount(minlength=len(total["ridge/count"]))
    rows, columns = torch.triu_indices(d, d, device=flat.device)
    total["ridge/gram"] += gram[rows, columns]
    total["ridge/fingerprint"] += len(case.items) * fingerprint(dict(trained(case.module))).to(flat)
    return flat
