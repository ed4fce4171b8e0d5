"""What no single setting of a scenario can know: two of them contradict each other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcl import registry
from fedcl.errors import nearest

if TYPE_CHECKING:
    from fedcl.config import Scenario


def problems(s: "Scenario") -> Iterator[str]:
    """Yield what contradicts what, one sentence each, with key, value and a way out."""
    clients, server, memory = s.stream.clients, s.server, s.client.memory
    asked = server.clients_per_round
    if asked is not None and asked > clients:
        yield f"server.clients_per_round = {asked}: must be at most stream.clients = {clients}"
    if server.min_clients > (asked or clients):
        most = f"must be at most the {asked or clients} clients asked in a round"
        yield f"server.min_clients = {server.min_clients}: {most}"
    if s.client.method.draws and memory.size == 0:
        name = registry.name_of("client_methods", s.client.method)
        yield f"client.memory.size = 0: method {name!r} replays from a memory; set client.memory.size above 0"
    whole = [prefix for prefix in s.model.personal if not prefix.startswith("head")]
    if getattr(server.method, "shares", None) == "body" and whole:
        name = registry.name_of("server_methods", server.method)
        yield f"model.personal = {whole}: method {name!r} adds up features of one embedding, which all must share"
    problem = getattr(s.client.curriculum, "problem", None)
    if problem and (found := problem(s.client.batch)):
        yield found
    yield from _unshared(s)
    yield from _bent(s)
    yield from _elsewhere(s)
    if isinstance(s.engine.stack, int) and isinstance(s.engine.cohort, int) and s.engine.stack > s.engine.cohort:
        yield f"engine.stack = {s.engine.stack}: must be at most engine.cohort = {s.engine.cohort}"


def notes(s: "Scenario") -> Iterator[str]:
    """Yield what is allowed but will hardly do what its user wants, one sentence each."""
    yield from s.client.curriculum.notes(s.client.epochs)
    server, client, optimizer = s.server.method, s.client.method, s.client.optimizer
    if getattr(server, "heads", "") == "shared" and s.stream.kind == "class-incremental" and s.stream.tasks > 1:
        name = registry.name_of("server_methods", server)
        yield (
            f"server.method = {name!r} with heads = 'shared' and stream.kind = 'class-incremental': the features of "
            "old classes, above all their mean, are protected in the head that new classes need, and hardly anything "
            "new is learnt; set server.method.heads = per-task, or stream.kind = task-incremental"
        )
    mu, steepest = getattr(client, "mu", 0.0), getattr(optimizer, "steepest", 0.0)
    if isinstance(mu, float) and steepest and mu > steepest:
        lr = f"client.optimizer.lr = {optimizer.lr:g}"
        yield f"client.method.mu = {mu:g}: above {steepest:g} steps with {lr} must diverge"


def _unshared(s: "Scenario") -> Iterator[str]:
    """Yield what client and server method do not give each other."""
    client, server = s.client.method, s.server.method
    names = registry.name_of("client_methods", client), registry.name_of("server_methods", server)
    lacking = set(getattr(client, "reads", ())) - set(getattr(server, "offers", ()))
    if lacking:
        where = f"server.method = {names[1]!r}: client method {names[0]!r} needs {', '.join(sorted(lacking))}"
        yield f"{where} of the server; set server.method to the one of its own name"
    unanswered = set(getattr(server, "answers", ())) - {"delta"} - set(getattr(client, "answers", ()))
    if unknown := [name for name in sorted(unanswered) if name not in _statistics()]:
        asks = f"server.method = {names[1]!r}: asks clients for an unknown statistic {unknown[0]!r}"
        yield asks + nearest(unknown[0], _statistics())
    elif unanswered:
        where = f"client.method = {names[0]!r}: server method {names[1]!r} needs {', '.join(sorted(unanswered))}"
        yield f"{where} of the clients; set client.method to the one of its own name"
    if getattr(server, "shares", None) == "model" and s.model.personal:
        yield f"model.personal = {s.model.personal}: method {names[1]!r} measures the global model, which must be whole"


def _statistics() -> tuple[str, ...]:
    from fedcl.answers import LAYOUTS  # torch: where a method asks for more than updates it is here already

    return tuple(LAYOUTS)


def _bent(s: "Scenario") -> Iterator[str]:
    """Yield what bends local steps, or weighs answers, where a client method takes steps for plain gradients."""
    why, optimizer = getattr(s.client.method, "plain", ""), s.client.optimizer
    if not why:
        return
    name = registry.name_of("optimizers", optimizer)
    if name != "sgd":
        yield f"client.optimizer = {name!r}: must be 'sgd', because {why}"
    for key, plain in (("momentum", 0.0), ("weight_decay", 0.0), ("keep", False)):
        if getattr(optimizer, key, plain) != plain:
            yield f"client.optimizer.{key} = {getattr(optimizer, key)}: must be {plain}, because {why}"
    if optimizer.lr == 0:
        yield f"client.optimizer.lr = 0: must be above 0, because {why}, which steps of no length do not tell"
    if s.client.clip is not None:
        yield f"client.clip = {s.client.clip}: must be null, because {why}"
    if s.server.max_update_norm is not None:
        yield f"server.max_update_norm = {s.server.max_update_norm}: must be null, because {why}, whatever their norm"
    if s.server.weights != "uniform":
        yield f"server.weights = {s.server.weights!r}: must be 'uniform', because {why}, one a client"


def _elsewhere(s: "Scenario") -> Iterator[str]:
    """Yield what needs to know data that only its owners know, or the time at which it arrives."""
    stream, name = s.stream, registry.name_of("datasets", s.stream.dataset)
    opened = getattr(stream.schedule, "opens", False)
    if not getattr(stream.dataset, "elsewhere", False):
        if opened:
            yield f"stream.schedule.kind = 'arrival': data set {name!r} is all there at the start; set dataset = local"
        return
    their = f"with data set {name!r} a task is what a client's files say, or what has arrived"
    if stream.kind != "class-incremental":
        yield f"stream.kind = {stream.kind!r}: must be 'class-incremental'; {their}"
    for key in ("joint", "shuffle_classes", "base_classes"):
        if value := getattr(stream, key):
            yield f"stream.{key} = {value}: must be {type(value)(0)}; {their}"
    if stream.schedule.clock == "participations" and not opened:
        yield f"stream.schedule.clock = 'participations': must be 'rounds', or the schedule 'arrival'; {their}"
    order = registry.name_of("curricula", s.client.curriculum)
    if order != "vanilla":
        yield f"client.curriculum = {order!r}: must be 'vanilla', for nobody knows how much data a task will have"
    rides = getattr(s.server.method, "participants", "") == "round" and getattr(s.server.method, "task_answers", ())
    if opened and rides and not getattr(s.server.method, "every", 0):
        method = registry.name_of("server_methods", s.server.method)
        yield (
            f"server.method = {method!r}: asks in a task's last round, which 'arrival' does not know; "
            "set server.method.consolidate_every"
        )
