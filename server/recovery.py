"""A server that finds its weights dead goes back by itself to the last checkpoint from which clients could train.

Whose updates stood out in the round that is to blame is named, and the round is repeated once without them. Where
nobody stands out, or it comes to the same again, the run ends there as diverged: a resumed run begins with sound
weights, whatever its operator has done meanwhile.
"""

import time
from typing import Any

from fedcl.errors import Diverged
from fedcl.log import REMEDIES
from server import checkpoint
from server.federation import Federation
from server.soundness import Unsound
from server.state import State

STANDS_OUT = 2.0  # times the median of its round


def fall_back(federation: Federation, state: State, found: Unsound) -> State:
    """Return the newest state before the round that is to blame, and put the checkpoints since then aside."""
    if 0 < found.round <= state.round:
        for path in checkpoint.kept(federation.folder / "checkpoints"):
            if (checkpoint.round_of(path) or 0) >= found.round:
                checkpoint.put_aside(path, "unsound")
        state = federation.restore(forget=False) or federation.first_state()
    federation.committed, federation.synced = (state.round, time.monotonic()), set()
    return state


def leave_out(federation: Federation, state: State, found: Unsound) -> None:
    """Name whose updates stand out in the round that is to blame, and repeat it once without them.

    Args:
        state: which the run has gone back to.

    Raises:
        Diverged: nobody stands out, or the round has been repeated before.
    """
    norm = _norms(federation, found.round)
    longest = norm.get("longest", [])
    out = [client for client, length in longest if length > STANDS_OUT * norm["median"]]
    again = bool(out) and found.round not in federation.suspects
    federation.journal.write({
        "event": "fallback", "round": found.round, "to": state.round, "why": str(found), "longest": longest,
        "left_out": out if again else [],
    })  # fmt: skip
    which = f"after round {found.round}" if found.round else "that the run begins with"
    words = f"the weights {which} are not sound: {found}"
    if found.round:
        words += f"; the run goes back to round {state.round}"
    if longest:
        words += f"; the longest updates: {', '.join(f'client {client} ({n:.3g})' for client, n in longest)}"
        words += f", median {norm['median']:.3g}"
    if not again:
        raise Diverged(f"{words}; {REMEDIES}; fedcl run --resume {federation.folder} goes on from there")
    federation.journal.error(words)
    federation.suspects[found.round] = out


def _norms(federation: Federation, round: int) -> dict[str, Any]:
    """Return what the journal says of the norms of a round's updates, the last time that it was run."""
    found: dict[str, Any] = {}
    for event in federation.journal.events():
        if event["event"] == "round" and event["round"] == round:
            found = event.get("norm", {})
    return found
