"""Client methods: presets that fill the axes (loss terms, gradient transforms). There is no class per combination.

A method of one's own is a frozen dataclass like these, named in a scenario as `package.module:Name` or by the entry
point group `fedcl.client_methods`.
"""

from dataclasses import dataclass

from clients.gradients import Transform, agem
from clients.losses import Draw, Term
from clients.losses.cross_entropy import CrossEntropy, Replay
from clients.losses.dark import Dark
from clients.losses.proximal import Proximal
from fedcl.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ClientMethod(Settings):
    """What a client adds up and in which order it bends its gradient."""

    def terms(self) -> dict[str, Term]:
        """Return the loss terms by the name under which they are logged."""
        return {"ce": CrossEntropy()}

    def transforms(self) -> tuple[Transform, ...]:
        """Return the gradient transforms, first applied first."""
        return ()

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The replay draws that its terms and references read, each once."""
        references = [term for each in self.transforms() for term in each.references.values()]
        return tuple(dict.fromkeys(draw for term in (*self.terms().values(), *references) for draw in term.draws))


@dataclass(frozen=True, kw_only=True)
class Finetune(ClientMethod):
    """Plain training on the current task: the lower bound."""


@dataclass(frozen=True, kw_only=True)
class Frozen(ClientMethod):
    """No training at all: the update is exactly zero, for methods that need features alone (prototypes, analytic)."""

    def terms(self) -> dict[str, Term]:
        """Return no loss term."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ER(ClientMethod):
    """Experience replay (Chaudhry et al., arXiv:1902.10486): CE(x, y) + CE(x', y')."""

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and replay."""
        return {"ce": CrossEntropy(), "replay": Replay()}


@dataclass(frozen=True, kw_only=True)
class DER(ClientMethod):
    """Dark experience replay (Buzzega et al., NeurIPS 2020, arXiv:2004.07211): CE + alpha * MSE to stored logits."""

    alpha: float = setting(0.1, "weight of the distance to the stored logits", low=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the dark term."""
        return {"ce": CrossEntropy(), "dark": Dark(alpha=self.alpha)}


@dataclass(frozen=True, kw_only=True)
class DERpp(DER):
    """DER++ (same paper): DER + beta * CE(x'', y'') of a second, independent draw."""

    beta: float = setting(0.5, "weight of the replayed labels", low=0)

    def terms(self) -> dict[str, Term]:
        """Return DER's terms and replay."""
        return {**DER.terms(self), "replay": Replay(beta=self.beta)}


@dataclass(frozen=True, kw_only=True)
class AGEM(ClientMethod):
    """A-GEM (Chaudhry et al., ICLR 2019, arXiv:1812.00420): the gradient never points against the memory's."""

    def transforms(self) -> tuple[Transform, ...]:
        """Return the projection."""
        return (agem.AGEM(),)


@dataclass(frozen=True, kw_only=True)
class FedProx(ClientMethod):
    """FedProx (Li et al., MLSys 2020, arXiv:1812.06127): CE + mu / 2 * ||w_k - w||^2."""

    mu: float = setting(0.01, "pull towards the global model", low=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the proximal term."""
        return {"ce": CrossEntropy(), "proximal": Proximal(mu=self.mu)}
