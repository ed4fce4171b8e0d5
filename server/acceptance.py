"""Whether the sums that nodes send can be: looked at before anything is added up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcl.answers import Answer, Layout, borrowed, refusal
from fedcl.config import ServerConfig
from fedcl.orders import Array, Ints, Withheld
from fedcl.plan import Cohort
from fedcl.streams import Stream
from server import norms

LEAST = {"n": 1, "steps": 1, "evicted": 0, "capped": 0}
MOST = 1 << 40  # samples, steps or evictions of a client
ROUNDING = 1e-3  # of sums in float32, far above what it comes to
MOST_NOTES, LONGEST_NOTE = 4, 500  # of a reply, and letters of each
Rule = Callable[[int, int], tuple[Any, list[str]]]
NOBODY = np.zeros(0, np.int64)


def sum_problem(layout: Layout, total: Array, dtype: str) -> str | None:
    """Return why a flat sum (A,) cannot be of a layout and a dtype; None: it can."""
    if str(total.dtype) != dtype:
        return f"the answer is in {total.dtype}, not in {dtype}"
    if total.shape != (layout.size,):
        return f"the answer has shape {total.shape} instead of ({layout.size},)"
    return refusal(layout, borrowed(total))


def counts_problem(
    clients: Ints, table: Mapping[str, Array], names: Sequence[str], lowest: Mapping[str, int] = LEAST
) -> str | None:
    """Return why the counts of clients cannot be, None if they can."""
    columns = [(table.get(name), lowest[name]) for name in names]
    wrong = any(c is None or c.dtype != np.int64 or (c < least).any() or (c > MOST).any() for c, least in columns)
    if len(clients) and wrong:
        words = {"n": "samples", "steps": "steps", "evicted": "evictions", "capped": "parameters held"}
        return f"its table lacks the numbers of {', '.join(words[name] for name in names)}, or one of them cannot be"
    return None


def notes_problem(notes: Sequence[str]) -> str | None:
    """Return why notes of a reply cannot be passed on, None if they can."""
    if len(notes) <= MOST_NOTES and all(len(note) <= LONGEST_NOTE and note.isprintable() for note in notes):
        return None
    return f"notes that are none: at most {MOST_NOTES} of {LONGEST_NOTE} letters, without control characters"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the server knows itself of clients' data, from the stream: nobody gets weight by claiming more.

    Who is not listed is not compared: a client whose counts only its node knows is left out.
    """

    clients: Ints  # (k,) ascending
    columns: Mapping[str, Ints]  # (k, ...) by the name under which a reply says the same

    @staticmethod
    def of(clients: Ints, **columns: Ints) -> "Known":
        """Return what is known of clients in any order."""
        order = np.argsort(clients)
        return Known(clients=clients[order], columns={name: each[order] for name, each in columns.items()})

    @staticmethod
    def _by(stream: Stream, clients: Ints, **columns: Ints) -> "Known":
        """Return what a stream tells: nothing, where only its node knows what a client's folder holds by now."""
        return Known(clients=NOBODY, columns={}) if stream.dataset.elsewhere else Known.of(clients, **columns)

    @staticmethod
    def of_cells(stream: Stream, clients: Ints, tasks: Ints) -> "Known":
        """Return the samples `n` of each client's task."""
        return Known._by(stream, clients, n=stream.train.count[clients, tasks])

    @staticmethod
    def of_visits(stream: Stream, cohorts: Sequence[Cohort], *, epochs: int = 1, batch: int = 1) -> "Known":
        """Return the samples `n` of the visits of a plan, and their `steps`, the same under every curriculum."""
        clients, tasks, clocks = (
            np.concatenate([NOBODY, *(getattr(each, name) for each in cohorts)])
            for name in ("clients", "tasks", "clocks")
        )
        n = stream.sizes(clients, tasks, clocks)
        return Known._by(stream, clients, n=n, steps=epochs * -(-n // batch))

    @staticmethod
    def of_tests(stream: Stream, clients: Ints, limit: int | None) -> "Known":
        """Return the test `items` of clients by task, of which at most `limit` a task are measured."""
        items = stream.test.count[clients]
        return Known._by(stream, clients, items=items if limit is None else np.minimum(items, min(limit, MOST)))

    def less(self, name: str, withheld: Sequence[Withheld], rule: Rule) -> tuple["Known", str | None]:
        """Return what is known once clients withhold figures that rest on too few samples, and what cannot be of that.

        Args:
            name: the column that is smaller for it.
            rule: client, samples that a figure must rest on -> what its column is then, and which figures lack.
        """
        if name not in self.columns:
            return self, None
        column = self.columns[name].copy()
        for each in withheld:
            if each.client not in self.clients:
                continue
            column[self.clients == each.client], figures = rule(each.client, each.least)
            told = [one for one in each.figures if not one.startswith("accuracy on ")]
            if told != figures:
                return self, f"client {each.client} withholds {told}, but its data by the stream make it {figures}"
        return Known(clients=self.clients, columns={**self.columns, name: column}), None

    def problem(self, clients: Ints, said: Mapping[str, Array]) -> str | None:
        """Return how what clients say of their data differs from what is known, None if it does not."""
        mine = np.flatnonzero(np.isin(clients, self.clients))
        rows = np.searchsorted(self.clients, clients[mine])
        for name in [each for each in self.columns if each in said]:
            if np.array_equal(said[name][mine], self.columns[name][rows]):
                continue
            for place, row in zip(mine, rows, strict=True):
                claim, known = said[name][place].tolist(), self.columns[name][row].tolist()
                if claim != known:
                    return f"{name} = {claim} of client {clients[place]}, but its data by the stream make it {known}"
        return None


def samples_problem(answer: Answer, n: Ints) -> str | None:
    """Return why task statistics cannot be of n samples a client, by the samples that they count; None: they can."""
    counted = [name for name, _ in answer.layout.shapes if name.endswith("/count") or name == "samples"]
    for name in counted:
        if float(answer[name].sum()) != float(n.sum()):
            return f"its {name} is of {float(answer[name].sum()):g} samples, its table of {int(n.sum())}"
    return None


def update_problem(server: ServerConfig, answer: Answer, table: Mapping[str, Array]) -> str | None:
    """Return why a sum of weighted updates cannot be what clients with these samples send, None if it can.

    The weights add up to the samples (or the clients). The sum is not longer than the updates that it is of: not than
    the norms in the table, and no update counts that is longer than `server.max_update_norm`.
    """
    names = dict(answer.layout.shapes)
    if "weight" not in names:
        return None
    weights = table["n"].astype(np.float64) if server.weights == "samples" else np.ones(len(table["n"]))
    weight, expected, limit = float(answer["weight"]), float(weights.sum()), server.max_update_norm
    if abs(weight - expected) > ROUNDING * expected:
        return f"the weights of its updates add up to {weight:g}, not to {expected:g}"
    said = table.get("norm")
    if said is None or said.dtype.kind != "f" or np.isnan(said).any() or (said < 0).any():
        return "its table lacks the norms of its updates, or one of them cannot be"
    length = norms.length(answer)
    if limit is not None and length > limit * expected * (1 + ROUNDING):
        return f"its mean update has norm {length / expected:.3g}, more than server.max_update_norm = {limit:g}"
    most = float(weights @ norms.effective(server, said))
    if length > most * (1 + ROUNDING) + norms.TINY * expected:
        claim = f"its table makes it {most / expected:.3g} at most"
        return f"its mean update has norm {length / expected:.3g}, but {claim}"
    return None
