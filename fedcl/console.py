"""What a run says while it runs, and its table of figures at the end."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedcl import foreign
from fedcl.log import REMEDIES, own_accuracy, seen_accuracy

Event = Mapping[str, Any]
UNKNOWN = "-"
RECENT = 0.2  # weight of the newest round in the running means of seconds and updates a second
# Row of the table -> the figure of `metrics`, and what a reader makes of it.
FIGURES = {
    "ACC": ("acc", "mean accuracy over tasks at the end"),
    "AIA": ("aia", "the same, averaged over the ends of tasks"),
    "forgetting": ("forgetting", "best minus last accuracy of old tasks"),
    "BWT": ("bwt", "change of old tasks since they were learnt"),
    "plasticity": ("plasticity", "accuracy of each task when just learnt"),
}

# What became of the updates that do not count, by the kind of their loss.
LOST = {
    "failed": "by errors", "diverged": "not finite", "refused": "refused by the server", "absent": "did not come",
    "withheld": "withheld by their nodes",
}  # fmt: skip


def fraction(value: float | None) -> str:
    """Write an accuracy or a difference of accuracies with three digits; unknown as "-"."""
    return UNKNOWN if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Write a span of time as 7 s, 3:05 or 2:03:05 (rounded up, so that nothing left reads 0 s)."""
    whole = int(-(-max(seconds, 0.0) // 1))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def size(n: float) -> str:
    """Write a number of bytes as 312 B, 4.1 kB, 12.0 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def rate(updates_per_second: float | None) -> str:
    """Write client updates a second with the digits that mean something."""
    if updates_per_second is None:
        return UNKNOWN
    return f"{updates_per_second:,.0f}" if updates_per_second >= 10 else f"{updates_per_second:.2f}"


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - RECENT) * old + RECENT * new


def _tasks(tasks: Sequence[int]) -> str:
    distinct = sorted(set(tasks))
    if len(distinct) > 4:
        return f"tasks {distinct[0]}..{distinct[-1]}"
    return f"task {', '.join(map(str, distinct)) or UNKNOWN}"


class OnTerminal:
    """Something that is shown while work goes on: a context manager around the work.

    On a terminal what `shown` returns, live, and lines that stay; elsewhere plain lines only.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console, self._quiet = console or Console(highlight=False), quiet
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Start what is live, on a terminal."""
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, get_renderable=self.shown, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever happened."""
        if self._live:
            self._live.stop()
            self._live = None

    def shown(self) -> RenderableType:
        """Return what is live."""
        raise NotImplementedError

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(escape(foreign.plain(text)), soft_wrap=True)


class Progress(OnTerminal):
    """A listener of journal events: a live line, and lines that stay for evaluations and task ends."""

    def __init__(self, console: Console | None = None, errors: Console | None = None, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._errors = errors or Console(stderr=True, highlight=False)
        self.forget()

    def forget(self) -> None:
        """Know nothing of a run."""
        self._personal = False
        self._rounds, self._round, self._tasks = 0, 0, ""
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._rate: float | None = None
        self._seconds: float | None = None
        self._diverging = -1  # the last round that was told to diverge
        self._last: float | None = None  # when the round before ended
        self._counted = 0  # rounds that were seen

    def shown(self) -> Text:
        """Return the live line."""
        return self.line()

    def __call__(self, event: Event) -> None:
        """Take one event of the journal; kinds that say nothing to a watcher are passed over."""
        react = getattr(self, f"_on_{event['event']}", None)
        if react:
            react(event)

    def catch_up(self, events: Iterable[Event]) -> None:
        """Take what a run that goes on has written before: its start, and how far it came."""
        for event in events:
            if event["event"] == "start":
                self(event)
            elif event["event"] == "evaluation":
                self._accuracy = seen_accuracy(event)

    def line(self) -> Text:
        """Return the live line: round, tasks, loss, accuracy, client updates a second, time left."""
        if not self._round:
            return Text("starting ...")
        loss = UNKNOWN if self._loss is None else f"{self._loss:.4f}"
        head = [f"round {self._round}/{self._rounds or '?'}", self._tasks]
        middle = [f"loss {loss}", f"accuracy {fraction(self._accuracy)}"]
        eta, speed = f"ETA {self._left()}", rate(self._rate)
        for parts in (  # what a narrow terminal has no room for goes, the time that is left never
            [*head, *middle, f"{speed} client updates/s", eta], [*head, *middle, f"{speed}/s", eta],
            [*head, *middle, eta], [head[0], *middle, eta], [head[0], eta],
        ):  # fmt: skip
            text = " · ".join(parts)
            if len(text) <= self._console.width:
                break
        return Text(text, no_wrap=True, overflow="ellipsis")

    def _warn(self, text: str, style: str = "yellow") -> None:
        self._errors.print(escape(foreign.plain(text)), style=style, soft_wrap=True)

    def _left(self) -> str:
        if self._seconds is None or not self._rounds or self._counted < 2:  # the first round compiles and warms up
            return UNKNOWN
        return duration(self._seconds * (self._rounds - self._round))

    def _on_start(self, event: Event) -> None:
        self._rounds, self._personal = event["rounds"], event.get("personal", False)
        what = f"{event['clients']} clients, {event['tasks']} tasks, {event['rounds']} rounds"
        self._say(f"{event['name']}: {what}, seed {event['seed']}, {event.get('device', 'cpu')}")
        for note in event.get("notes", ()):
            self._warn(f"note: {note}")

    def _on_round(self, event: Event) -> None:
        took = self._took(event)
        # The first round warms up, 30 times as long as another where it is short: the second one counts alone.
        self._seconds = took if self._counted < 2 else _mean(self._seconds, took)
        self._counted += 1
        self._round, self._tasks = event["round"], _tasks(event["tasks"])
        self._loss = sum(event["loss"].values()) if event["loss"] else None
        if event["seconds"] > 0:
            self._rate = _mean(self._rate, event["updates"] / event["seconds"])

    def _took(self, event: Event) -> float:
        """Return the seconds of a round and what lies between it and the one before."""
        now, before = time.monotonic(), self._last
        self._last = now
        # The first round has the start of the workers before it: count the round alone.
        return float(event["seconds"]) if before is None else now - before

    def _on_evaluation(self, event: Event) -> None:
        self._round, self._accuracy = event["round"], seen_accuracy(event)
        if self._round:
            self._say(str(self.line()))

    def _on_task_end(self, event: Event) -> None:
        accuracy = event.get("accuracy")
        per_task = " ".join(fraction(value) for value in accuracy) if accuracy else "absent, parameters are personal"
        self._say(f"round {event['round']}: {_tasks(event['tasks'])} ended; accuracy per task: {per_task}")

    def _on_client_task_end(self, event: Event) -> None:
        if not self._personal:
            return
        finished, mean = f"{len(event['clients'])} clients finished a task", fraction(own_accuracy(event))
        self._say(f"round {event['round']}: {finished}; their own models' mean accuracy on it: {mean}")

    def _on_bases(self, event: Event) -> None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in event["share"].items())
        self._say(f"round {event['round']}: protected directions: {shares}")
        for note in event["notes"]:
            self._warn(f"round {event['round']}: {note}")

    def _on_note(self, event: Event) -> None:
        self._warn(f"round {event['round']}: note: {event['text']}")

    def _on_joined(self, event: Event) -> None:
        whose = " of ".join(part for part in (event["name"], event["node"]) if part)
        self._say(f"round {event['round']}: client {event['client']} is {whose}")

    def _on_waiting(self, event: Event) -> None:
        here = f"{event['here']} clients are here, {event['needed']} needed"
        self._say(f"round {event['round']}: waiting for {event['for']}: {here}")

    def _on_queued(self, event: Event) -> None:
        self._say(f"waiting for free cores or GPUs: {event['here']} of {event['needed']} workers have started")

    def _on_stock(self, event: Event) -> None:
        items = sum(sum(each.values()) for each in event["items"])
        said = f"round {event['round']}: {len(event['clients'])} clients have {items:,} training items"
        faults = sum(event["faults"])
        self._say(said + (f"; {faults:,} fault{'s' * (faults > 1)} in their folders" if faults else ""))

    def _on_withheld(self, event: Event) -> None:
        what = f"client {event['client']} withholds {', '.join(event['figures'])}"
        self._say(f"round {event['round']}: {what}: fewer than {event['least']} samples each (its node's --min-count)")

    def _on_late(self, event: Event) -> None:
        whose = ", ".join(map(str, event["clients"]))
        self._say(f"round {event['round']}: the answer of clients {whose} came after server.deadline: refused")

    def _on_untracked(self, event: Event) -> None:
        self._warn(f"tracker {event['tracker']} gets no more of this run: {event['error']} (error.log)")

    def _on_mended(self, event: Event) -> None:
        self._warn(f"{event['lines']} lines of events.jsonl could not be read: the run goes on without what they said")

    def _on_diverging(self, event: Event) -> None:
        before, self._diverging = self._diverging, event["round"]
        if before == event["round"] - 1:  # it has been said
            return
        loss = "not a number" if event["loss"] is None else f"{event['loss']:.3g}"
        what = f"the clients' loss is {loss}, that of guessing {event['chance']:.3g}" if event["exploded"] else ""
        lost = f"{event['updates']} of {event['asked']} updates are not finite" if event["updates"] else ""
        told = ", ".join(part for part in (what, lost) if part)
        self._warn(f"round {event['round']}: training diverges: {told}; {REMEDIES}", "red")

    def _on_fallback(self, event: Event) -> None:
        if not event["left_out"]:
            return  # the run ends with the same words
        longest = ", ".join(f"client {client} ({norm:.3g})" for client, norm in event["longest"])
        named = f"; longest updates: {longest}" if longest else ""
        out = f"; clients {', '.join(map(str, event['left_out']))} are left out of it now"
        back = f"going back to round {event['to']}"
        self._warn(f"the weights after round {event['round']} are not sound: {event['why']}; {back}{named}{out}", "red")

    def _on_client_error(self, event: Event) -> None:
        what = f"client {event['client']} failed in round {event['round']}: {event['error']}"
        self._warn("\n".join(filter(None, (foreign.line(what), foreign.quoted(event["traceback"])))), "red")


def _row(table: Table, name: str, value: str, note: str) -> None:
    table.add_row(name, value, escape(note))


def _add_clients(table: Table, results: Mapping[str, Any]) -> None:
    spread = (results.get("clients") or {}).get("acc")
    reason = results.get("absent", {}).get("clients.acc", "not recorded")
    notes = ("mean accuracy of a client on its own stream", "the client that is served worst")
    for name, key, note in zip(("clients' mean", "clients' worst"), ("mean", "worst"), notes, strict=True):
        _row(table, name, fraction(spread[key] if spread else None), note if spread else reason)


def _add_losses(table: Table, results: Mapping[str, Any]) -> None:
    updates = results.get("updates") or {}
    lost = [f"{updates[kind]:,} {words}" for kind, words in LOST.items() if updates.get(kind)]
    if lost:
        number = updates["asked"] - updates["accepted"]
        _row(table, "lost updates", f"{number:,} of {updates['asked']:,}", f"{', '.join(lost)} (error.log)")
    if results["status"] == "diverged":
        _row(table, "diverged", "", REMEDIES)


def _add_cost(table: Table, cost: Mapping[str, Any]) -> None:
    per_second = cost.get("updates_per_second")
    _row(table, "client updates", f"{cost['client_updates']:,}", f"{rate(per_second)} a second")
    _row(table, "sent up", size(cost["bytes_up"]), "by the clients, in all")
    _row(table, "sent down", size(cost["bytes_down"]), "to the clients, in all")
    _row(table, "time", duration(cost["seconds"]), "of rounds, evaluation not counted")
    if memory := cost.get("memory"):
        workers = f", {size(memory['below'][0])} of its largest worker" if memory["below"] else ""
        _row(table, "memory", size(memory["process"]), f"of the server at most{workers}")


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of the table of a run's figures: figure, value, note."""
    columns = [[str(cell) for cell in column.cells] for column in table(results).columns]
    return [(name, value, note.replace("\\[", "[")) for name, value, note in zip(*columns, strict=True)]


def table(results: Mapping[str, Any]) -> Table:
    """Build the table of a run's figures from its results.json; what is unknown shows "-" and the reason."""
    shown = Table(title=escape(f"{results['name']}, seed {results['seed']}: {results['status']}"), box=SIMPLE_HEAD)
    shown.add_column("figure", no_wrap=True)
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("", style="dim")
    for name, (key, note) in FIGURES.items():
        value = results["metrics"].get(key)
        _row(shown, name, fraction(value), note if value is not None else results["absent"].get(key, "not recorded"))
    _add_clients(shown, results)
    _add_losses(shown, results)
    _add_cost(shown, results["cost"])
    return shown
