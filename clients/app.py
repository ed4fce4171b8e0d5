"""The Flower ClientApp. Thin: what computes is imported when a message is carried out here (clients.node)."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


def _answer(message: Message, context: Context) -> Message:
    """Carry a message out and return the reply."""
    from clients import node  # torch and all that computes

    content = node.answer(message.metadata.message_type, message.content, context.node_config, context.state)
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which clients this node hosts: every num-partitions-th from partition-id on."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists; one reply covers them all."""
    return _answer(message, context)


@app.query("consolidate")
def consolidate(message: Message, context: Context) -> Message:
    """Measure statistics of a task's data for the clients that the message lists."""
    return _answer(message, context)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Measure how hard their training data is for the clients that the message lists."""
    return _answer(message, context)


@app.query("trace")
def trace(message: Message, context: Context) -> Message:
    """Measure how training would go for the clients that the message lists; nothing of it is kept."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients that the message lists on their own test items."""
    return _answer(message, context)
