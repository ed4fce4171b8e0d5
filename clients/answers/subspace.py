"""FOT's statistics of a layer's inputs A (d, n) (Bakman et al., ICLR 2024, arXiv:2309.01289).

With the server's orthonormal basis U of old inputs, R = A - U U^T A:
    sketch   Y = R S, S (n, m) with entries N(0, 1) or uniform in [-1, 1], drawn from the node's own secret
    gram     A A^T, exactly: what S hides is open, but the sum over clients is that of the pooled inputs
and with both, n * ||R||_F / ||A||_F, ||R||_F^2, ||A||_F^2 and n, so that the server knows the energy left.
"""

import torch
from torch import Tensor

from clients.answers.case import Case, layer_inputs
from fedcl.answers import LAYOUTS
from fedcl.hidden import Hidden


def residual(a: Tensor, basis: Tensor | None) -> Tensor:
    """Return A - U U^T A for columns a (d, n) and basis (d, k)."""
    return a if basis is None else a - basis @ (basis.T @ a)


def with_ones(a: Tensor, d: int) -> Tensor:
    """Return columns a (d, n), or a (d - 1, n) with the input that is always 1 below it: the bias's."""
    return a if len(a) == d else torch.cat([a, a.new_ones(1, a.shape[1])])


def _measured(case: Case, statistic: str) -> Tensor:
    """Add up the statistic and the energies over chunks of the client's data."""
    layout = LAYOUTS[statistic](case.parameters, case.method)
    flat = torch.zeros(layout.size, dtype=case.data.dtype, device=case.items.device)
    total = layout.views(flat)
    inputs = case.method.inputs(case.parameters)
    names = tuple(inputs)
    draws = {name: Hidden(case.secret, case.client, case.round, name) for name in names}
    for x in case.inputs():
        for name, a in layer_inputs(case.module, names, x).items():
            a = with_ones(a, inputs[name])
            r = residual(a, case.shared.get(f"basis/{name}"))
            if statistic == "gram":
                total[f"gram/{name}"] += a @ a.T
            else:
                shape = a.shape[1], total[f"sketch/{name}"].shape[1]
                hidden = draws[name]
                s = hidden.normal(*shape) if case.method.sketch_draws == "normal" else hidden.uniform(*shape)
                total[f"sketch/{name}"] += r @ torch.from_numpy(s).to(r)
            total[f"energy/{name}"][1:] += torch.stack([r.square().sum(), a.square().sum()])
    n = float(len(case.items))
    for name in names:
        energy = total[f"energy/{name}"]
        energy[0] = n * (energy[1] / energy[2].clamp(min=1e-30)).sqrt()
    total["items"] += n
    return flat


def sketch(case: Case) -> Tensor:
    """Return the flat sketch and energies of every protected layer."""
    return _measured(case, "sketch")


def gram(case: Case) -> Tensor:
    """Return the flat Gram matrices and energies of every protected layer."""
    return _measured(case, "gram")
