"""Class sums (Federated Reconnaissance, arXiv:2109.00150): per class the sum of f(x) and the number of samples.

In float64, with the fingerprint of the embedding f that they were made with (`fedcl.embedding`).
"""

import torch
from torch import Tensor

from clients.answers.case import Case, features_of
from fedcl.answers import LAYOUTS
from fedcl.embedding import fingerprint
from fedcl.models import trained


@torch.no_grad()
def class_sums(case: Case) -> Tensor:
    """Return the flat sums and counts of one client's data of a task."""
    layout = LAYOUTS["class_sums"](case.parameters, case.method)
    flat = torch.zeros(layout.size, dtype=torch.float64, device=case.items.device)
    total = layout.views(flat)
    for x, y in case.labelled():
        total["class_sums/sum"].index_add_(0, y, features_of(case.module, x))
        total["class_sums/count"] += y.bincount(minlength=len(total["class_sums/count"]))
    total["class_sums/fingerprint"] += len(case.items) * fingerprint(dict(trained(case.module))).to(flat)
    return flat
