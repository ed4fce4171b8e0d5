"""Federated Reconnaissance (Hendryx et al., 2021, arXiv:2109.00150): one mean feature a class, exact and order-free.

    P_c = sum_k sum_{x in c} f(x) / sum_k n_kc,     predict argmin_c ||f(x) - P_c||^2

over all clients and all tasks. Clients send the sums and counts of a task once, when they leave it, never a running
mean with a new count (as published: 30 samples at 0, then 30 at 1, would give .25 instead of .5). The embedding f is
random or given (`base_rounds: 0`: NMC, SimpleCIL), trained by the federation first, or never frozen (`server.methods.
frozen`). The paper trains it episodically: `client.method: prototypical` with `client.curriculum: episodes`.

`missions: true` is the paper's protocol: whenever a client has left a task it is measured with what it then knows, the
server's sums from before and its own, on its own test items of the first task (base), of the tasks between and of this
one (the journal's event `local`); what the merged server can do is evaluated as always.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedcl.answers import LAYOUTS, Answer, Layout, Tensors
from fedcl.forms import Form, Forms
from fedcl.settings import setting
from server.methods.frozen import Frozen, seen, seen_form


@dataclass(frozen=True, kw_only=True)
class Prototypes(Frozen):
    """Federated Reconnaissance: nearest class mean of the features of a frozen embedding."""

    statistic: ClassVar[str] = "class_sums"

    missions: bool = setting(
        False, "measure every client after its own update, before the server merges it: base, earlier, new classes"
    )

    def task_shared(self, state: Tensors) -> Tensors:
        """Return the sums so far, where clients are measured with them."""
        return {name: state[name] for name in ("sum", "count")} if self.missions else {}

    def task_shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that the sums are those of every class, of whole numbers of samples."""
        shapes = {name.partition("/")[2]: shape for name, shape in LAYOUTS[self.statistic](parameters, self).shapes}
        count = Form(shape=shapes["count"], dtype="float64", low=0, whole=True)
        return {"sum": Form(shape=shapes["sum"], dtype="float64"), "count": count} if self.missions else {}

    def on_client(self, shared: Tensors, own: Answer) -> Tensors:
        """Return the class means of the server's sums and the client's own."""
        sums = own.under(self.statistic)
        return self.made({name: each + sums[name] for name, each in shared.items()}) if self.missions else {}

    def made(self, state: Tensors) -> Tensors:
        """Return the class means."""
        return {"prototypes": state["sum"] / state["count"].clamp(min=1)[:, None], "seen": seen(state)}

    def classifier_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that every class has a mean of its features."""
        means = Form(shape=dict(parameters.shapes)["head.weight"], dtype="float64")
        return {"prototypes": means, "seen": seen_form(parameters)}
