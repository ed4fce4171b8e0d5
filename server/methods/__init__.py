"""Server methods: how a sum of answers becomes new weights. State in, state out; state is named tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedcl.answers import Answer, Layout, Tensors
from fedcl.forms import Forms
from fedcl.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ServerMethod(Settings):
    """What the round loop asks of a method; the defaults do nothing.

    `answers` names the statistics of their training that clients add up every round (see `clients.answers`), and
    `task_answers` those of a task's data, wanted when a task ends:
        participants "round": from the clients of the round in which nobody will meet the task again, under their own
            models, riding on the answers of that round (`every` asks every so many rounds instead)
        participants "all": from every client that has data of the task, under the new global model, in an exchange of
            its own; who cannot be reached is asked later. `when` "client": when the client leaves the task; "task":
            when everyone has.
    """

    answers: ClassVar[tuple[str, ...]] = ("delta",)
    participants: ClassVar[Literal["round", "all"]] = "round"
    when: ClassVar[Literal["client", "task"]] = "client"
    offers: ClassVar[tuple[str, ...]] = ()  # what `shared` sends for a client method (`reads`)
    # What no client may have of its own (model.personal): the "body" whose features are added up, or the whole "model".
    shares: ClassVar[Literal["", "body", "model"]] = ""
    afresh: ClassVar[bool] = False  # a task that begins finds optimiser, selection and clients as a run's first does

    @property
    def task_answers(self) -> tuple[str, ...]:
        """The task statistics that these settings ask for."""
        return ()

    @property
    def every(self) -> int:
        """Rounds between task statistics that ride on answers; 0: when a task ends."""
        return 0

    def begin(self, weights: Tensors) -> Tensors:
        """Return the state before the first round."""
        return {}

    def enrolled(self, state: Tensors, clients: int) -> Tensors:
        """Return that state once it is known how many clients the federation has."""
        return state

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        """Return state and weights before the round in which the first client meets the global tasks `began`."""
        return state, weights

    def shared(self, state: Tensors) -> Tensors:
        """Return what clients are sent beside the weights."""
        return {}

    def shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return the forms of what `shared` sends: nodes refuse everything else (`fedcl.forms`).

        Args:
            parameters: of the model.
            tasks: in the stream.
        """
        return {}

    def task_shared(self, state: Tensors) -> Tensors:
        """Return what clients are sent beside that when task statistics are asked for."""
        return {}

    def task_shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return the forms of what `task_shared` sends."""
        return {}

    def classifier(self, state: Tensors, weights: Tensors) -> Tensors:
        """Return what predicts instead of the model's logits (see `fedcl.classifiers`); nothing: the logits do."""
        return {}

    def classifier_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return the forms of what `classifier` sends."""
        return {}

    def on_client(self, shared: Tensors, own: Answer) -> Tensors:
        """Return what predicts on a client from what it was sent and its own statistics; nothing: nobody measures it.

        Args:
            shared: `task_shared`, as the client got it (participants "all").
            own: the client's own statistics of the task that it has just left.
        """
        return {}

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Return the new state and the step to add to the weights."""
        raise NotImplementedError

    def project(self, state: Tensors, step: Tensors) -> Tensors:
        """Bend the step after the server optimiser, last."""
        return step

    def asks(self, state: Tensors, weights: Tensors) -> Literal["nothing", "due", "everything"]:
        """Return which task statistics everyone is asked for now (participants "all").

        "due": those that have not come in. "nothing": those wait. "everything": those that have come in do not fit the
        weights any more and are asked for again, once each.
        """
        return "due"

    def task_problem(self, weights: Tensors, answer: Answer) -> str | None:
        """Return why task statistics under these weights cannot be taken (participants "all"); None: they can."""
        return None

    def end_task(
        self, state: Tensors, weights: Tensors, total: Answer | None, ended: Sequence[int]
    ) -> tuple[Tensors, Tensors]:
        """Return state and weights after tasks ended.

        Args:
            state, weights: after the round's step.
            total: the task statistics that came in, with the round's answers where they ride on them; None: nothing.
            ended: global tasks that nobody will meet again (or, every so many rounds, those of the round).
        """
        return state, weights

    def report(self, state: Tensors, total: Answer | None, ended: Sequence[int]) -> Mapping[str, Any]:
        """Return an event that tells what `end_task` came to, its kind under "event"; nothing: there is none.

        Args:
            state: after `end_task`.
            total, ended: what `end_task` was given.
        """
        return {}
