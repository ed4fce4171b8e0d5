"""Whether a run can still be trained: what is not sound is never all that is left, and divergence is told."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedcl.log import EXPLODED
from fedcl.orders import DIVERGED, REFUSED, Array, ClientError
from server.federation import Federation, round_to
from server.state import State, server_tensors


class Unsound(Exception):
    """The weights after a round are of no use; says why."""

    def __init__(self, round: int, why: str) -> None:
        super().__init__(why)
        self.round = round  # whose answers have made them so; 0: those that the run began with


def check(state: State, round: int) -> State:
    """Return the state after a round, whose weights, method and optimiser hold finite numbers alone.

    What a selection remembers is not looked at: of clients that it knows nothing of, it holds no number.

    Raises:
        Unsound: they do not.
    """
    for name, each in _named(state):
        # A sum is not finite where an addend is not.
        if each.is_floating_point() and not torch.isfinite(each.sum()) and not torch.isfinite(each).all():
            raise Unsound(round, f"{name} holds numbers that are not finite")
    return state


def _named(state: State) -> Iterator[tuple[str, Tensor]]:
    yield from state.weights.items()
    yield from ((name, each) for name, each in server_tensors(state).items() if not name.startswith("selection/"))


def check_answers(state: State, asked: int, columns: Mapping[str, Array], errors: Sequence[ClientError]) -> None:
    """Look at whether anybody could train from the weights of a state.

    Args:
        asked: clients that were asked to.
        columns, errors: what came of it.

    Raises:
        Unsound: everybody diverged, or all losses are no numbers.
    """
    kinds = Counter(each.kind for each in errors)
    if kinds[DIVERGED] and kinds[DIVERGED] + kinds[REFUSED] == asked:
        raise Unsound(state.round, f"from them no update of the next round is of use: {_first(errors).error}")
    losses = _losses(columns)
    if losses is not None and not np.isfinite(losses).any():
        raise Unsound(state.round, "from them no client of the next round has a loss that is a number")


def _first(errors: Sequence[ClientError]) -> ClientError:
    return next(each for each in errors if each.kind == DIVERGED)


def _losses(columns: Mapping[str, Array]) -> Array | None:
    """Return the training loss of each client that answered, its terms together (k,); None: nobody says one."""
    terms = [each for name, each in columns.items() if name.startswith("loss/") and len(each) == len(columns["n"])]
    return np.sum(terms, axis=0) if terms and len(columns["n"]) else None


def tell_divergence(
    federation: Federation, round: int, asked: int, columns: Mapping[str, Array], errors: Sequence[ClientError]
) -> None:
    """Write down that training diverges: losses explode, or clients say that theirs has gone.

    The median of the clients' losses is looked at, so that no single client can say it of all.
    """
    losses, chance = _losses(columns), float(np.log(max(2, federation.stream.dataset.classes)))
    median = None if losses is None else float(np.median(losses))
    exploded = median is not None and not median <= EXPLODED * chance
    diverged = sum(each.kind == DIVERGED for each in errors)
    if exploded or diverged:
        known = round_to(median) if median is not None and np.isfinite(median) else None
        federation.journal.write({
            "event": "diverging", "round": round, "loss": known, "chance": round_to(chance), "exploded": exploded,
            "updates": diverged, "asked": asked,
        })  # fmt: skip
