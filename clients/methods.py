"""Client methods: presets that fill the axes (loss terms, gradient transforms). There is no class per combination.

A method of one's own is a frozen dataclass like these, named in a scenario as `package.module:Name` or by the entry
point group `fedcl.client_methods`.
"""

from dataclasses import dataclass
from typing import ClassVar

from clients.gradients import Transform, agem, gpm, scaffold
from clients.losses import Draw, Keeper, Term, ewc, lwf, prototypical, si
from clients.losses.cross_entropy import CrossEntropy, Replay
from clients.losses.dark import Dark
from clients.losses.proximal import Proximal
from fedcl.answers import Layout
from fedcl.errors import ConfigError
from fedcl.settings import Settings, setting
from fedcl.subspace import Protection


@dataclass(frozen=True, kw_only=True)
class ClientMethod(Settings):
    """What a client adds up and in which order it bends its gradient."""

    plain: ClassVar[str] = ""  # why a local step must be plain gradient descent; empty: it need not be

    def terms(self) -> dict[str, Term]:
        """Return the loss terms by the name under which they are logged."""
        return {"ce": CrossEntropy()}

    def transforms(self) -> tuple[Transform, ...]:
        """Return the gradient transforms, first applied first."""
        return ()

    def check(self, parameters: Layout) -> None:
        """Check the settings against a model with these parameters, before a run begins.

        Raises:
            ConfigError: they do not fit.
        """
        for each in self._keepers():
            each.bases(parameters)

    def _keepers(self) -> list[Keeper]:
        return [each for each in (*self.terms().values(), *self.transforms()) if isinstance(each, Keeper)]

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The replay draws that its terms and references read, each once."""
        references = [term for each in self.transforms() for term in each.references.values()]
        return tuple(dict.fromkeys(draw for term in (*self.terms().values(), *references) for draw in term.draws))

    @property
    def reads(self) -> tuple[str, ...]:
        """What its regularisers and transforms read of the server method's (`offers`)."""
        return tuple(name for each in self._keepers() for name in each.reads)

    @property
    def answers(self) -> tuple[str, ...]:
        """The statistics of a visit that no client has without this method."""
        return tuple(name for each in self._keepers() for name in each.answers)


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
    """Experience replay (Chaudhry et al., 2019, arXiv:1902.10486): CE(x, y) + CE(x', y')."""

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
    """DER++ (Buzzega et al., NeurIPS 2020, arXiv:2004.07211): DER + beta * CE(x'', y'') of an independent draw."""

    beta: float = setting(0.5, "weight of the replayed labels", low=0)

    def terms(self) -> dict[str, Term]:
        """Return DER's terms and replay."""
        return {**DER.terms(self), "replay": Replay(beta=self.beta)}


@dataclass(frozen=True, kw_only=True)
class Prototypical(ClientMethod):
    """Episodic training of an embedding (Snell et al., NeurIPS 2017, arXiv:1703.05175), for nearest class means."""

    shots: int = setting(5, "items of a class in a batch that make its mean; the others are asked about", low=1)

    def terms(self) -> dict[str, Term]:
        """Return the prototypical loss."""
        return {"prototypical": prototypical.Prototypical(shots=self.shots)}

    def check(self, parameters: Layout) -> None:
        """Check that the model has something to learn before its head.

        Raises:
            ConfigError: it has not.
        """
        if all(name.startswith("head.") for name, _ in parameters.shapes):
            raise ConfigError(
                "client.method = 'prototypical': it trains an embedding, and this model's features are its inputs; "
                "set model to one with hidden layers, as mlp"
            )


@dataclass(frozen=True, kw_only=True)
class AGEM(ClientMethod):
    """A-GEM (Chaudhry et al., ICLR 2019, arXiv:1812.00420): the gradient never points against the memory's."""

    def transforms(self) -> tuple[Transform, ...]:
        """Return the projection."""
        return (agem.AGEM(),)


@dataclass(frozen=True, kw_only=True)
class GPM(Protection, ClientMethod):
    """Gradient projection memory (Saha et al., ICLR 2021, arXiv:2103.09762), on each client for itself."""

    def transforms(self) -> tuple[Transform, ...]:
        """Return the projection."""
        return (gpm.GPM(protection=self),)


@dataclass(frozen=True, kw_only=True)
class Scaffold(ClientMethod):
    """SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378): control variates against clients' drift, option II.

    Together with `server.method: scaffold`.
    """

    plain: ClassVar[str] = "control variates are means of plain gradients"

    def transforms(self) -> tuple[Transform, ...]:
        """Return the correction."""
        return (scaffold.Scaffold(),)


@dataclass(frozen=True, kw_only=True)
class FedProx(ClientMethod):
    """FedProx (Li et al., MLSys 2020, arXiv:1812.06127): CE + mu / 2 * ||w_k - w||^2."""

    mu: float = setting(0.01, "pull towards the global model", low=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the proximal term."""
        return {"ce": CrossEntropy(), "proximal": Proximal(mu=self.mu)}


@dataclass(frozen=True, kw_only=True)
class EWC(ClientMethod):
    """Online EWC, on each client for itself.

    (Kirkpatrick et al., PNAS 2017, arXiv:1612.00796; Schwarz et al., ICML 2018, arXiv:1805.06370)
    """

    lam: float = setting(10.0, "weight of the penalty", low=0)
    gamma: float = setting(1.0, "what is left of the Fisher information at the next task's end", low=0, high=1)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the penalty."""
        return {"ce": CrossEntropy(), "ewc": ewc.EWC(lam=self.lam, gamma=self.gamma)}


@dataclass(frozen=True, kw_only=True)
class FedEWC(ClientMethod):
    """EWC with what `server.method: fedewc` sends: the global model at the last task's end and how much it matters.

    (Kirkpatrick et al., PNAS 2017, arXiv:1612.00796)
    """

    lam: float = setting(10.0, "weight of the penalty", low=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the penalty."""
        return {"ce": CrossEntropy(), "ewc": ewc.FedEWC(lam=self.lam)}


@dataclass(frozen=True, kw_only=True)
class SI(ClientMethod):
    """Synaptic intelligence (Zenke et al., ICML 2017, arXiv:1703.04200), on each client for itself."""

    c: float = setting(0.5, "weight of the penalty", low=0)
    xi: float = setting(1.0, "added to the squared distance that a parameter has moved", above=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and the penalty."""
        return {"ce": CrossEntropy(), "si": si.SI(c=self.c, xi=self.xi)}


@dataclass(frozen=True, kw_only=True)
class LwF(ClientMethod):
    """Learning without Forgetting (Li, Hoiem, TPAMI 2018, arXiv:1606.09282), taught by the client's last model."""

    alpha: float = setting(3.0, "weight of the distillation", low=0)
    temperature: float = setting(2.0, "temperature of both softmaxes", above=0)

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and distillation."""
        return {"ce": CrossEntropy(), "lwf": lwf.LwF(alpha=self.alpha, temperature=self.temperature)}


@dataclass(frozen=True, kw_only=True)
class FedLwF(LwF):
    """LwF with the teacher that `server.method: fedlwf` sends: the global model when the newest task began.

    (Li, Hoiem, TPAMI 2018, arXiv:1606.09282)
    """

    def terms(self) -> dict[str, Term]:
        """Return cross-entropy and distillation."""
        return {"ce": CrossEntropy(), "lwf": lwf.FedLwF(alpha=self.alpha, temperature=self.temperature)}
