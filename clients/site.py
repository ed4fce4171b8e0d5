"""What a worker or a node knows before it is asked anything: data, model, method, the shape of records and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

import fedcl.models
from clients.answers.case import Case, load_weights
from clients.curricula import Curriculum, Vanilla
from clients.gradients import Transform
from clients.gradients.clip import ClipNorm
from clients.losses import Keeper, Kept, Regulariser
from clients.memories import Ints, Memory
from clients.programs import Programs
from clients.records import record_dtype
from clients.trainer import Stepwise, Trainer
from clients.visits import Steps
from fedcl import hidden, keys
from fedcl.answers import Layout, answer_layout
from fedcl.config import Scenario
from fedcl.keys import Purpose
from fedcl.models import personal_names, trained
from fedcl.models.behaviour import stack_problem
from fedcl.models.dropout import Dropout
from fedcl.orders import ConsolidateOrder, TrainOrder
from fedcl.process import settle
from fedcl.source import Source, source
from fedcl.streams import Stream
from fedcl.world import scenario_of, world

_STACKABLE: dict[tuple[type, str, tuple[int, ...]], str | None] = {}  # what this process knows of models
SELDOM = 4096  # bytes of a record from which on a file of their own is worth it


@dataclass(frozen=True)
class Site:
    """A scenario made concrete on one device."""

    scenario: Scenario
    stream: Stream
    secret: bytes  # of this node alone; in simulation it comes from the seed
    least: int = 0  # samples that a figure must rest on to leave this node (`fedcl.withholding`)

    @cached_property
    def device(self) -> torch.device:
        """Where this site computes."""
        return torch.device(self.scenario.engine.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of parameters and answers."""
        dtype: torch.dtype = getattr(torch, self.scenario.model.dtype)
        return dtype

    @cached_property
    def module(self) -> nn.Module:
        """The model, as it is built."""
        data = self.stream.dataset
        module = fedcl.models.make(self.scenario.model, tuple(data.x.shape[1:]), data.classes, self.scenario.seed)
        return module.to(self.device)

    @cached_property
    def trainer(self) -> Trainer:
        """The local training loop with this scenario's axes."""
        module, client = self.module, self.scenario.client
        clip: tuple[Transform, ...] = (ClipNorm(limit=client.clip),) if client.clip else ()
        return Trainer(
            module=module,
            layout=Layout.of(dict(trained(module))),
            terms=client.method.terms(),
            transforms=(*client.method.transforms(), *clip),
            optimizer=client.optimizer,
            data=source(self.stream, "train", self.dtype, self.device).ready(),
            classes=self.stream.dataset.classes,
            personal=personal_names(self.scenario.model, trained(module)),
            path=self.path,
            programs=Programs(compile=self.stack if self.scenario.engine.compile else 0),
        )

    @cached_property
    def test(self) -> Source:
        """The test split."""
        return source(self.stream, "test", self.dtype, self.device)

    @property
    def parameters(self) -> Layout:
        """Names and shapes of the model's parameters."""
        return self.trainer.layout

    @property
    def stack(self) -> int:
        """Clients trained together."""
        stack = self.scenario.engine.stack
        asked = self.scenario.engine.clients if stack == "auto" else stack
        return 1 if asked > 1 and self.apart else asked

    @cached_property
    def apart(self) -> list[str]:
        """Why clients are trained one by one although a stack is asked for: nothing, or what fails in one.

        A model that cannot be stacked is known before anything is trained. What else fails `clients.work` finds out.
        """
        shape, model = tuple(self.stream.dataset.x.shape[1:]), self.scenario.model
        kind = (type(model), repr(model), shape)
        if kind not in _STACKABLE:
            _STACKABLE[kind] = stack_problem(self.module, shape)
        problem = _STACKABLE[kind]
        return [problem] if problem else []

    @cached_property
    def width(self) -> int:
        """Rows of a batch: as many as are asked for, and no more than the largest client of the stream can fill."""
        train = self.stream.totals if self.scenario.stream.joint else self.stream.train.count
        return max(1, min(self.scenario.client.batch, int(train.max(initial=0))))

    @cached_property
    def memory(self) -> Memory | None:
        """The replay memory, None where the method draws nothing from it."""
        memory: Memory = self.scenario.client.memory
        return memory if self.scenario.client.method.draws and memory.size else None

    @cached_property
    def regularisers(self) -> list[Regulariser]:
        """The loss terms that hold the model to what was learnt before."""
        return [term for term in self.scenario.client.method.terms().values() if isinstance(term, Regulariser)]

    @cached_property
    def keepers(self) -> list[Keeper]:
        """The terms and transforms for which a client keeps something, or that read what the server sends."""
        method = self.scenario.client.method
        return [each for each in (*method.terms().values(), *method.transforms()) if isinstance(each, Keeper)]

    @cached_property
    def curvature(self) -> dict[str, float]:
        """What of that they keep or read, times which number, is the second derivative of a term."""
        return {name: factor for each in self.regularisers for name, factor in each.curvature.items() if factor}

    @cached_property
    def leavers(self) -> list[Keeper]:
        """Those of them that keep something of tasks."""
        return [each for each in self.keepers if each.keeps and each.of == "tasks"]

    @cached_property
    def visitors(self) -> list[Keeper]:
        """Those of them that keep something of every visit."""
        return [each for each in self.keepers if each.keeps and each.of == "visits"]

    @cached_property
    def kept(self) -> dict[str, Layout]:
        """What is kept for them, by name: which tensors, in a flat vector of a client's record."""
        return {one.name: self._layout_of(one, each) for each in self.keepers for one in each.keeps}

    def _layout_of(self, kept: Kept, keeper: Keeper) -> Layout:
        if kept.of == "parameters":
            return self.parameters
        if kept.of == "bases":
            return keeper.bases(self.parameters)
        return Layout(((kept.of, (self.stream.dataset.classes,) if kept.of == "classes" else ()),))

    def noise(self, clients: Ints, round: int, steps: int) -> Tensor:
        """Return keys of what dropout drops, one a client and step (k, steps); (k, steps, 0) where nothing is."""
        if not self.drops:
            return torch.zeros(len(clients), steps, 0, dtype=torch.int64, device=self.device)
        drawn = keys.key(self.scenario.seed, Purpose.DROPOUT, clients[:, None], round, np.arange(steps))
        return torch.from_numpy(drawn.view(np.int64)).to(self.device)

    @cached_property
    def drops(self) -> bool:
        """Whether the model has dropout."""
        return any(isinstance(each, Dropout) for each in self.trainer.module.modules())

    @property
    def afresh(self) -> bool:
        """Whether a client forgets everything when it comes to another task."""
        return bool(self.scenario.server.method.afresh)

    @property
    def path(self) -> bool:
        """Whether one of them needs the path of local training."""
        return any(each.path for each in self.regularisers)

    @property
    def curriculum(self) -> Curriculum:
        """Which items of a visit are shown when."""
        curriculum: Curriculum = self.scenario.client.curriculum
        return curriculum

    @cached_property
    def experts(self) -> dict[int, Tensor]:
        """Parameters (P,) of the experts trained so far in this process, by task (clients.curricula.scores)."""
        return {}

    def stepwise(self, steps: Steps, taught: Tensor | None = None) -> Stepwise:
        """Return what the stream shows at each step, on the device, with a teacher's logits (k, w, classes) if any."""
        labels = self.stream.dataset.y[steps.items]
        columns = [torch.from_numpy(each).to(self.device) for each in (steps.items, steps.tasks, labels)]
        weight = torch.from_numpy(steps.weight).to(self.dtype).to(self.device)
        slots = None if taught is None else torch.from_numpy(steps.index).to(self.device)
        return Stepwise(
            items=columns[0], tasks=columns[1], labels=columns[2], weight=weight, slots=slots, logits=taught
        )

    @cached_property
    def shared(self) -> Tensor:
        """(P,) 1 where a parameter is shared with the server, 0 where it is personal."""
        parts = [
            torch.full((where.stop - where.start,), float(name not in self.trainer.personal))
            for name, (where, _) in self.parameters.slices.items()
        ]
        return torch.cat(parts).to(self.dtype).to(self.device)

    @cached_property
    def personal(self) -> Tensor:
        """(P,) bool, True where a parameter stays on the client."""
        return self.shared == 0

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """Fields of a client's record."""
        return record_dtype(
            tasks=len(self.stream.tasks),
            classes=self.stream.dataset.classes,
            memory=self.memory,
            logits=any(draw.logits for draw in self.scenario.client.method.draws),
            optimizer=self.scenario.client.optimizer,
            parameters=self.parameters,
            personal=int(self.personal.sum()),
            real="<f4" if self.dtype == torch.float32 else "<f8",
            local=self.curriculum.needs in ("L", "LG") or bool(self.leavers),
            shown=int(self.stream.totals.max()) if self.memory and not isinstance(self.curriculum, Vanilla) else 0,
            kept=[(one.name, self.kept[one.name].size) for each in self.leavers for one in each.keeps],
            of_visits=[(one.name, self.kept[one.name].size) for each in self.visitors for one in each.keeps],
            path=self.path,
            position=self.afresh,
            samples=(self.stream.dataset.x.dtype, self.stream.dataset.x.shape[1:]) if self._keeps_samples else None,
        )

    @cached_property
    def seldom(self) -> tuple[str, ...]:
        """Fields of a record that change when a client leaves a task, and are large enough to lie apart."""
        names = tuple(one.name for each in self.leavers for one in each.keeps)
        return names if sum(self.record[name].itemsize for name in names) > SELDOM else ()

    @property
    def _keeps_samples(self) -> bool:
        """Whether remembered samples lie in the record: where the data set may lose what it had."""
        return self.memory is not None and self.stream.dataset.elsewhere

    def case(self, order: TrainOrder | ConsolidateOrder, row: int, weights: Tensor) -> Case:
        """Return one client's data of its task, and the model with these weights (P,)."""
        client, task = int(order.clients[row]), int(order.tasks[row])
        items, tasks = self.stream.items(client, task, 0, int(self.stream.train.count[client, task]))
        load_weights(self.trainer.module, self.parameters, weights)
        return Case(
            module=self.trainer.module,
            parameters=self.parameters,
            method=self.scenario.server.method,
            shared={name: torch.from_numpy(each.copy()).to(self.device) for name, each in order.shared.items()},
            data=self.trainer.data,
            items=torch.from_numpy(items.copy()).to(self.device),  # a stream from Ray's object store is read-only
            tasks=torch.from_numpy(tasks).to(self.device),
            client=client,
            round=order.round,
            secret=self.secret,
        )

    @property
    def answer(self) -> Layout:
        """Names and shapes of the answer of an ordinary round."""
        return self.layout(self.scenario.server.method.answers)

    def layout(self, statistics: Sequence[str]) -> Layout:
        """Return names and shapes of an answer with these statistics."""
        return answer_layout(statistics, self.parameters, self.scenario.server.method)


def make_site(text: str, stream: Stream | None = None, secret: bytes | None = None, least: int = 0) -> Site:
    """Make the site of a resolved configuration, on a stream that is already there or is built now.

    Args:
        secret: the node's own; None: a simulated node's.
        least: samples that a figure must rest on to leave the node.
    """
    settle()
    scenario, stream = (scenario_of(text), stream) if stream else world(text)
    return Site(scenario, stream, secret or hidden.of_seed(scenario.seed), least)


@lru_cache(maxsize=2)
def site(text: str, secret: bytes | None = None, least: int = 0) -> Site:
    """Return the site of a resolved configuration, built once a process."""
    return make_site(text, secret=secret, least=least)
