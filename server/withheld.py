"""What clients have that must not leave their nodes: which of it the server misses, in the journal."""

from fedcl.orders import Reply
from server.federation import Federation


def tell(federation: Federation, round: int, reply: Reply) -> None:
    """Write down which figures of a reply's clients rest on too few samples, once each."""
    for each in reply.withheld:
        figures = [one for one in each.figures if (each.client, one) not in federation.lacking]
        federation.lacking |= {(each.client, one) for one in figures}
        if figures:
            event = {"event": "withheld", "round": round, "client": each.client, "least": each.least}
            federation.journal.write({**event, "figures": figures})
