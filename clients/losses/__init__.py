"""Loss terms: pure functions of one client's model and batch; the trainer adds, lifts and logs them by name.

A term is a frozen dataclass with `draws` (what it wants from the replay memory each step) and
`__call__(model, batch, anchors) -> scalar`. Weights of a batch's rows sum to one (to zero where there is nothing), so
`(per_sample * items.weight).sum()` is the mean over the real rows, never over the padded ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from clients.answers.case import Case
from fedcl.answers import Layout, Tensors
from fedcl.models import dropout


class Items(NamedTuple):
    """Samples of one client and one step (b rows; k clients in front where stacked)."""

    x: Tensor  # (b, *shape)
    y: Tensor  # (b,) int64
    mask: Tensor  # (b, classes) or (b, 1): added to the logits before a cross-entropy, 0 or -inf
    weight: Tensor  # (b,) sums to 1, or to 0 where there is nothing
    logits: Tensor  # (b, classes) as remembered, or as a teacher gives them, or (b, 0)


class Batch(NamedTuple):
    """One step's data: the stream's batch, and a batch for each replay draw."""

    now: Items
    draws: dict[str, Items]
    noise: Tensor = dropout.NOTHING  # () int64 key of what dropout drops


class Anchors(NamedTuple):
    """What terms measure distances to: tensors shared by all clients, and each client's own."""

    shared: dict[str, Tensors]
    own: dict[str, Tensors]


class Forward:
    """The model bound to one client's parameters; a second call on the same tensor costs nothing."""

    def __init__(
        self,
        call: Callable[[Tensor], Tensor],
        parameters: Tensors,
        noise: Tensor = dropout.NOTHING,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._calls, self.parameters, self._noise = {"logits": call, "features": embed or call}, parameters, noise
        self._inputs: dict[int, tuple[int, Tensor]] = {}  # number and input: an id may be used again once it is freed
        self._known: dict[tuple[str, int], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (b, classes) of inputs (b, *shape), not masked."""
        return self._once("logits", x)

    def features(self, x: Tensor) -> Tensor:
        """Return what enters the head (b, f) for inputs (b, *shape)."""
        return self._once("features", x)

    def _once(self, what: str, x: Tensor) -> Tensor:
        number, _ = self._inputs.setdefault(id(x), (len(self._inputs), x))
        if (what, number) not in self._known:
            noise = dropout.stir(self._noise, number) if self._noise.numel() else self._noise
            with dropout.dropping(noise):
                self._known[what, number] = self._calls[what](x)
        return self._known[what, number]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """An independent batch from the replay memory, every step; `logits` asks for remembered logits with it."""

    name: str
    logits: bool = False


class Term(Protocol):
    """One addend of the local loss."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The draws that the term reads."""

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the scalar loss of one client."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Numbers that a client keeps of the tasks it has left, or of its visits, zeros at first.

    One a parameter, one a class, a single one, or for each layer that `Keeper.bases` names a matrix (d, d): its first
    columns are a basis of layer inputs and the others zeros. Of these a step is given the first columns alone, (d, r).
    """

    name: str
    of: Literal["parameters", "classes", "number", "bases"] = "parameters"


@dataclass(frozen=True, kw_only=True)
class Left:
    """A task that a client has left, with what its last visit to it left behind."""

    case: Case  # the client's data of the task, and the model
    model: Tensor  # (P,) its parameters
    path: Tensor  # (P,) sum over the local steps at the task of -g * step, g without regularisers; 0 if nobody asks
    moved: Tensor  # (P,) sum of those steps: the jumps to the global model between visits are no part of either


@dataclass(frozen=True, kw_only=True)
class Visited:
    """A visit of k clients that has just ended."""

    moved: Tensor  # (k, P) what it has added to the parameters, 0 for personal ones
    steps: Tensor  # (k,) local steps of each client
    lr: float  # of its optimiser
    sent: Tensors  # (P,) what the server sent of what is read, by name


class Keeper:
    """A term or a transform for which a client keeps something; these are its defaults.

    It finds what it `reads` of the server's among the shared anchors (a term) or its references (a transform).
    """

    keeps: ClassVar[tuple[Kept, ...]] = ()
    of: ClassVar[Literal["tasks", "visits"]] = "tasks"  # what it keeps something of: `leave` or `visited` says what
    reads: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[tuple[str, ...]] = ()  # statistics of a visit that no client has without it

    def bases(self, parameters: Layout) -> Layout:
        """Return names and shapes (d, d) of the bases that it keeps for a model's layers."""
        return Layout(())

    def leave(self, kept: Tensors, left: Left) -> Tensors:
        """Return what is kept once a task is left, a vector by name, given what was kept before it."""
        return kept

    def visited(self, visit: Visited) -> Tensors:
        """Return what a visit adds to what is kept, (k, n) by name."""
        return {}


class Regulariser(Keeper):
    """A term that holds the model to what was learnt before; these are its defaults.

    It finds what it `keeps` as `anchors.own[name]`, what it `reads` of the server's as `anchors.shared[name]` (tensors
    by parameter name, or `classes`), and the logits of a `teacher` as `batch.now.logits`.
    """

    draws: tuple[Draw, ...] = ()
    teacher: ClassVar[str | None] = None  # one of `keeps` or `reads`: parameters of a model whose logits it wants
    path: ClassVar[bool] = False  # whether it needs `Left.path` and `Left.moved`

    @property
    def curvature(self) -> dict[str, float]:
        """What of `keeps` or `reads`, times which number, is the second derivative of the term by each parameter."""
        return {}
