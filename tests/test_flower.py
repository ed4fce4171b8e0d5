"""What fedcl touches of Flower's private parts, and the wire: what goes in comes out, anything else is refused."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcl import wire
from fedcl.engine import flower
from fedcl.engine.inline import InlineGrid
from fedcl.orders import ClientError, EvaluateOrder, EvaluateReply, TrainOrder, TrainReply

# Flower's private parts.


@pytest.fixture
def _identified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the identity of the engine, and take it back afterwards."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
        monkeypatch.delenv(name, raising=False)
    flower.identify()


def test_without_an_identity_flower_makes_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """`identify` is needed: the day that this passes without it, it can go."""
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match=r"TaskIdentity\.run_id is not set"):
        Message(RecordDict(), flower.NODE, "train")


@pytest.mark.usefixtures("_identified")
def test_the_identity_is_that_of_every_message() -> None:
    """Run, node and task are those that `identify` sets."""
    metadata = Message(RecordDict(), 7, "query.hello").metadata
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (1, flower.NODE, 1)
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (1, flower.NODE, 7)
    assert metadata.message_type == "query.hello"


@pytest.mark.usefixtures("_identified")
def test_a_message_gets_an_id_and_its_reply_names_it() -> None:
    """A fresh message has no id; `number` gives it one of its own; replies, errors too, carry it; ids differ."""
    message, other = (Message(RecordDict(), flower.NODE, "train") for _ in range(2))
    assert message.metadata.message_id == ""
    given_id = flower.number(message)
    assert message.metadata.message_id == given_id != flower.number(other)
    reply, error = Message(RecordDict(), reply_to=message), Message(Error(2, "why"), reply_to=message)
    assert reply.metadata.reply_to_message_id == error.metadata.reply_to_message_id == given_id
    assert not reply.has_error()
    assert (error.has_error(), error.error.reason) == (True, "why")


@pytest.mark.usefixtures("_identified")
def test_messages_share_one_record_and_keep_it() -> None:
    """The engine tells by identity which orders share their weights: Flower must not copy what a message holds."""
    weights = wire.pack({"weights": np.arange(3.0)})
    messages = [Message(wire.encode(ORDER, weights), flower.NODE, "train") for _ in range(2)]
    assert len({id(message.content.array_records["weights"]) for message in messages}) == 1
    assert messages[0].content.array_records["weights"] is weights


def test_a_context_holds_what_it_is_given() -> None:
    """The run's and the node's configuration arrive as they are, the state is empty."""
    context = flower.context({"directory": "/d", "state": ""}, {"partition-id": 0, "num-partitions": 1})
    assert dict(context.run_config) == {"directory": "/d", "state": ""}
    assert dict(context.node_config) == {"partition-id": 0, "num-partitions": 1}
    assert len(context.state) == 0


@pytest.mark.usefixtures("_identified")
def test_the_inline_grid_answers_a_failing_message_with_its_traceback() -> None:
    """An order that cannot be read becomes an error reply to that very message; the grid goes on."""
    grid = InlineGrid()
    assert list(grid.get_node_ids()) == [flower.NODE]
    messages = [Message(wire.config_of("nonsense: 1"), flower.NODE, kind) for kind in ("train", "query.hello")]
    replies = {each.metadata.reply_to_message_id: each for each in grid.send_and_receive(messages, timeout=60)}
    reasons = [replies.pop(each.metadata.message_id).error.reason or "" for each in messages]
    assert not replies
    assert "BadMessage" in reasons[0]
    assert "ConfigError: unknown key 'nonsense'" in reasons[1]


# The wire.

ORDER = TrainOrder(
    round=3, cohort=1, clients=np.array([4, 2]), packs=["a.pack", ""], rows=np.array([0, 0]), folder="/state",
    weights=np.array([0.5, -1.0, 2.0], np.float32), tasks=np.array([1, -1]), clocks=np.array([2, 0]),
    shared={"basis": np.eye(2)},
)  # fmt: skip
REPLY = TrainReply(
    round=3, cohort=1, clients=np.array([4, 2]), table={"n": np.array([8, 9]), "loss/ce": np.array([0.1, 0.2])},
    errors=[ClientError(client=7, error="no", traceback="Traceback ...")], total=np.array([1.0, 2.0]), pack="r.pack",
    checksum="00",
)  # fmt: skip
EVALUATE = EvaluateOrder(
    round=3, cohort=0, clients=np.array([5]), packs=[""], rows=np.array([0]), folder="", weights=np.zeros(2)
)
COUNTS = EvaluateReply(
    round=3, cohort=0, clients=np.array([5]), table={}, correct=np.array([[1, 0]]), items=np.array([[2, 0]])
)
ON_NODES = replace(ORDER, folder="", packs=["", ""], accepted=np.array([2, 0]), oldest=np.array([1, 0]))
MESSAGES = (ORDER, REPLY, EVALUATE, COUNTS, ON_NODES)


def same(one: Any, other: Any) -> bool:
    """Return whether two fields are equal: arrays to the bit, dtype and shape."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def assert_same(message: Any, decoded: Any) -> None:
    assert type(decoded) is type(message)
    assert [
        each.name for each in fields(message) if not same(getattr(message, each.name), getattr(decoded, each.name))
    ] == []


def ints(*shape: int) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.int64, shape)


def floats() -> st.SearchStrategy[Any]:
    kinds = st.sampled_from([np.float32, np.float64])
    return kinds.flatmap(lambda kind: arrays.arrays(kind, st.integers(0, 9)))


def tables(shape: Any) -> st.SearchStrategy[dict[str, Any]]:
    kinds = st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.bool_])
    return st.dictionaries(st.text(min_size=1), arrays.arrays(kinds, shape), max_size=3)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Draw an order or a reply with random contents of every kind."""
    n, numbers, text = (
        draw(st.integers(0, 5)),
        st.integers(0, 2**53),
        st.text(
            st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]),
            max_size=20,  # others are taken out on the way
        ),
    )
    shared = {"round": draw(numbers), "cohort": draw(numbers), "clients": draw(ints(n))}
    order = {"packs": draw(st.lists(text, min_size=n, max_size=n)), "rows": draw(ints(n)), "folder": draw(text)}
    if draw(st.booleans()):
        accepted = draw(arrays.arrays(np.int64, n, elements=numbers))
        order |= {"accepted": accepted, "oldest": accepted // draw(st.integers(1, 3))}
    errors = st.lists(st.builds(ClientError, client=numbers, error=text, traceback=text), max_size=2)
    reply = {"table": draw(tables(n)), "errors": draw(errors)}
    kind = draw(st.sampled_from([TrainOrder, EvaluateOrder, TrainReply, EvaluateReply]))
    if kind is TrainOrder:
        free = draw(tables(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
        own = {"weights": draw(floats()), "tasks": draw(ints(n)), "clocks": draw(ints(n)), "shared": free}
        return TrainOrder(**shared, **order, **own)
    if kind is EvaluateOrder:
        return EvaluateOrder(**shared, **order, weights=draw(floats()))
    if kind is TrainReply:
        return TrainReply(**shared, **reply, total=draw(floats()), pack=draw(text), checksum=draw(text))
    return EvaluateReply(**shared, **reply, correct=draw(ints(n, 3)), items=draw(ints(n, 3)))


@given(messages())
@settings(max_examples=60)
def test_what_is_encoded_is_decoded(message: Any) -> None:
    """Every field comes back to the bit (NaN and -0 too), also through Flower's own encoding for the network."""
    assert_same(message, wire.decode(wire.encode(message)))
    sent = recorddict_to_proto(wire.encode(message, config="the run")).SerializeToString()
    proto = recorddict_to_proto(RecordDict())
    proto.ParseFromString(sent)
    arrived = recorddict_from_proto(proto)
    assert_same(message, wire.decode(arrived))
    assert wire.text(arrived, "config") == "the run"


def test_weights_packed_once_arrive_in_every_order() -> None:
    """Orders of a round share one record of weights, which replaces the field."""
    weights = np.array([1.0, -0.0], np.float64)
    decoded = wire.decode(wire.encode(ORDER, wire.pack({"weights": weights})))
    assert_same(replace(ORDER, weights=weights), decoded)


@given(ints(4))
@settings(max_examples=10)
def test_a_node_says_whom_it_hosts(clients: Any) -> None:
    """The clients of a hello arrive as they are; a train order is no hello of another shape."""
    assert same(wire.hosted(wire.hello(clients)), clients)


def array(**changes: Any) -> Array:
    """Return two int64 numbers as an array of the wire, with changes."""
    return Array(**{"dtype": "int64", "shape": (2,), "stype": wire.RAW, "data": np.arange(2).tobytes(), **changes})


def changed_array(record: str, name: str, **changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.array_records[record][name] = array(**changes)

    return change


def changed_fact(name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        facts = wire._facts(content) | {name: value}
        content["facts"] = wire._config({key: each for key, each in facts.items() if each is not ...})

    return change


def without(*path: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        if len(path) == 1:
            del content[path[0]]
        else:
            del content.array_records[path[0]][path[1]]

    return change


def both(*changes: Callable[[RecordDict], None]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        for each in changes:
            each(content)

    return change


def with_facts(text: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["facts"] = ConfigRecord({"json": text})

    return change


FAULTS: dict[str, tuple[Any, Callable[[RecordDict], None], str]] = {
    "dtype-object": (ORDER, changed_array("arrays", "clients", dtype="object"), "dtype 'object'"),
    "dtype-unknown": (ORDER, changed_array("arrays", "clients", dtype="int63"), "dtype 'int63'"),
    "dtype-other": (ORDER, changed_array("arrays", "clients", dtype="float64"), "'clients' of a TrainOrder"),
    "dtype-of-total": (REPLY, changed_array("arrays", "total"), "'total' of a TrainReply"),
    "encoding": (ORDER, changed_array("arrays", "clients", stype="numpy.ndarray"), "encoding 'numpy.ndarray'"),
    "bytes-missing": (ORDER, changed_array("arrays", "clients", data=bytes(15)), "brings 15 bytes"),
    "bytes-too-many": (ORDER, changed_array("arrays", "clients", data=bytes(17)), "brings 17 bytes"),
    "shape-negative": (ORDER, changed_array("arrays", "clients", shape=(-1, -2)), r"claims shape \(-1, -2\)"),
    "shape-huge": (ORDER, changed_array("arrays", "clients", shape=(2**40, 2**40)), "brings 16 bytes"),
    "shape-nested": (ORDER, changed_array("arrays", "clients", shape=(2, 1)), r"'clients' has shape \(2, 1\)"),
    "shape-scalar": (ORDER, changed_array("arrays", "clients", shape=(), data=bytes(8)), "'clients' of a TrainOrder"),
    "shape-of-total": (REPLY, changed_array("arrays", "total", dtype="float64", shape=(1, 2)), "'total' of a"),
    "shape-of-correct": (COUNTS, changed_array("arrays", "correct", shape=(1, 2, 1)), "'correct' has shape"),
    "tasks-longer": (ORDER, changed_array("arrays", "tasks", shape=(3,), data=bytes(24)), "'tasks' has 3 entries"),
    "rows-shorter": (ORDER, changed_array("arrays", "rows", shape=(1,), data=bytes(8)), "'rows' has 1 entries for 2"),
    "accepted-shorter": (ON_NODES, changed_array("arrays", "accepted", shape=(1,), data=bytes(8)), "has 1 entries for"),
    "accepted-alone": (ON_NODES, changed_array("arrays", "oldest", shape=(0,), data=b""), "has 2 entries, 'oldest' 0"),
    "accepted-floats": (ON_NODES, changed_array("arrays", "accepted", dtype="float64"), "'accepted' of a TrainOrder"),
    "accepted-before-oldest": (ON_NODES, changed_array("arrays", "accepted"), "'oldest' must lie between 0 and"),
    "oldest-negative": (ON_NODES, changed_array("arrays", "oldest", data=np.array([-1, 0]).tobytes()), "'oldest' must"),
    "packs-shorter": (ORDER, changed_fact("packs", ["a.pack"]), "'packs' has 1 entries for 2"),
    "packs-no-texts": (ORDER, changed_fact("packs", [1, 2]), "'packs' of a TrainOrder"),
    "packs-a-text": (ORDER, changed_fact("packs", "ab"), "'packs' of a TrainOrder"),
    "column-longer": (REPLY, changed_array("table", "n", shape=(3,), data=bytes(24)), "column 'n' has shape"),
    "counts-longer": (COUNTS, changed_array("arrays", "items", shape=(2, 1)), "'items' has 2 entries for 1"),
    "round-a-text": (ORDER, changed_fact("round", "3"), "'round' of a TrainOrder"),
    "round-a-truth": (ORDER, changed_fact("round", True), "'round' of a TrainOrder"),
    "round-missing": (ORDER, changed_fact("round", ...), "'round'"),
    "folder-null": (ORDER, changed_fact("folder", None), "'folder' of a TrainOrder"),
    "kind-unknown": (ORDER, changed_fact("kind", "RunThis"), "unknown kind 'RunThis'"),
    "kind-missing": (ORDER, changed_fact("kind", ...), "unknown kind None"),
    "kind-a-list": (ORDER, changed_fact("kind", ["TrainOrder"]), "unknown kind"),
    "kind-of-another": (ORDER, changed_fact("kind", "TrainReply"), "lacks a field"),
    "clients-as-fact": (ORDER, both(without("arrays", "clients"), changed_fact("clients", [4, 2])), "'clients' of a"),
    "clients-missing": (ORDER, without("arrays", "clients"), "'clients'"),
    "total-missing": (REPLY, without("arrays", "total"), "'total'"),
    "weights-missing": (ORDER, without("arrays", "weights"), "'weights'"),
    "arrays-missing": (ORDER, without("arrays"), "lacks a field"),
    "table-missing": (REPLY, without("table"), "'table'"),
    "facts-missing": (ORDER, without("facts"), "without readable facts"),
    "facts-no-json": (ORDER, with_facts("{"), "without readable facts"),
    "facts-a-list": (ORDER, with_facts("[1]"), "facts are not a table"),
    "facts-deep": (ORDER, with_facts("[" * 100_000), "without readable facts"),
    "errors-no-list": (REPLY, changed_fact("errors", 3), "a list of errors that is none"),
    "errors-no-tables": (REPLY, changed_fact("errors", [3]), "a list of errors that is none"),
    "errors-other-fields": (REPLY, changed_fact("errors", [{"client": 1}]), "a list of errors that is none"),
    "errors-unnamed": (
        REPLY, changed_fact("errors", [{"client": "1", "error": "", "traceback": ""}]), "an entry of 'errors'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_message_is_refused(fault: str) -> None:
    """Each fault ends as BadMessage with a sentence that names it, never as another exception."""
    message, change, said = FAULTS[fault]
    content = wire.encode(message)
    change(content)
    with pytest.raises(wire.BadMessage, match=said):
        wire.decode(content)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=150)
def test_whatever_is_changed_is_read_or_refused(data: st.DataObject) -> None:
    """One random change of facts or arrays: the message decodes into its kind, or BadMessage is raised."""
    message = data.draw(st.sampled_from(MESSAGES))
    content = wire.encode(message)
    if data.draw(st.booleans()):
        facts = sorted(wire._facts(content))
        changed_fact(data.draw(st.sampled_from(facts)), data.draw(anything))(content)
    else:
        record = data.draw(st.sampled_from(sorted(content.array_records)))
        name = data.draw(st.sampled_from([*content.array_records[record], "another"]))
        dtype = data.draw(st.sampled_from(["int64", "float32", "bool", "object", "int8", ""]))
        shape = tuple(data.draw(st.lists(st.integers(-2, 3), max_size=3)))
        changed_array(record, name, dtype=dtype, shape=shape, data=data.draw(st.binary(max_size=24)))(content)
    with suppress(wire.BadMessage):
        assert type(wire.decode(content)).__name__ == wire._facts(content)["kind"]


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"arrays": wire.pack({"clients": np.zeros(2)})}),
                                     RecordDict({"arrays": wire.pack({"clients": np.zeros((2, 2), np.int64)})}),
                                     RecordDict({"arrays": ArrayRecord()})])  # fmt: skip
def test_a_hello_without_clients_is_refused(content: RecordDict) -> None:
    """Nothing, floats, a table or no list: BadMessage."""
    with pytest.raises(wire.BadMessage, match="hello without a list of clients"):
        wire.hosted(content)


def test_a_message_without_its_text_is_refused() -> None:
    """An order without the configuration beside it cannot be carried out."""
    with pytest.raises(wire.BadMessage, match="without 'config'"):
        wire.text(wire.encode(ORDER), "config")
