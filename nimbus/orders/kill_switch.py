"""The kill switch: one word per source, and the highest of them is the state that R1 reads.

Each word has one writer and a cache line of its own.  The operator's word holds what `arm` gave (DISARMED,
PAPER, LIVE) or a higher state; the other sources hold 0 while they have nothing to say.  With every other
word at 0 an unarmed process is DISARMED, and no source can lower what another has raised.
"""

from __future__ import annotations

from typing import Final

from nimbus.messages import LIVE, PAPER, REDUCING, STATE_NAMES
from ringbuf.atomics import load_acquire, store_release
from ringbuf.jit import inlined, kernel
from ringbuf.records import CACHE_LINE
from ringbuf.segment import Segment

OPERATOR, CONTROL, RISK, JOURNAL, WATCHDOG, EXECUTIONS = 0, 1, 2, 3, 4, 5
SOURCES: Final = ("operator", "control", "risk", "journal", "watchdog", "executions")
SWITCH_SIZE: Final = len(SOURCES) * CACHE_LINE
_SOURCES_COUNT: Final = len(SOURCES)


@inlined
def effective(switch: int) -> int:
    """Return the effective state: the highest word."""
    state = load_acquire(switch)  # pairs with store_release in raise_state() and KillSwitch.set()
    for source in range(1, _SOURCES_COUNT):
        state = max(state, load_acquire(switch + source * CACHE_LINE))
    return state


@inlined
def may_trade(state: int) -> bool:
    """Say whether new orders are allowed at all: PAPER, LIVE, and REDUCING within R2."""
    return state in (PAPER, LIVE, REDUCING)


@kernel
def raise_state(switch: int, source: int, state: int) -> None:
    """Raise the word of a source, never lower it; only the loop that is this source calls it."""
    at = switch + source * CACHE_LINE
    store_release(at, max(load_acquire(at), state))  # pairs with load_acquire in effective()


class KillSwitch:
    """Owns the words; every loop gets `addr`, and each writes its own word only."""

    def __init__(self, segment: Segment, name: str = "kill_switch") -> None:
        self.addr = segment.allocate(name, SWITCH_SIZE)
        self._words = segment.words(self.addr, SWITCH_SIZE // 8)

    def set(self, source: int, state: int) -> None:
        """Set the word of a source, up or down.  Clearing is for `arm`, after a clean reconciliation."""
        if not 0 <= source < len(SOURCES) or not 0 <= state < len(STATE_NAMES):
            msg = f"no such source or state: {source}, {state}"
            raise ValueError(msg)
        self._words[source * CACHE_LINE // 8] = state

    @property
    def state(self) -> str:
        """Name of the effective state."""
        return STATE_NAMES[effective(self.addr)]

    def by_source(self) -> dict[str, str]:
        """Return each source's own word by name."""
        return {s: STATE_NAMES[self._words[i * CACHE_LINE // 8]] for i, s in enumerate(SOURCES)}
