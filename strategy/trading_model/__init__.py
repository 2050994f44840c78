"""TradingModel: from (mean, uncertainty, tag, position) to an order, or to the reason why there is none.

`TradingModel` owns parameters and holdings; the kernels `decide`, `on_fill`, `find_overdue` and
`cancel_overdue` take its address.  See gates.py for the rules and state.py for reasons and parameters.
"""

from strategy.trading_model.decide import cancel_overdue, decide, find_overdue
from strategy.trading_model.fills import on_fill
from strategy.trading_model.state import (
    ALL_WARM,
    DEFAULTS,
    HOLDING,
    REASONS,
    STATES,
    TRADING,
    TradingModel,
    deadline,
    holding,
    warm_bits,
    warm_head,
)

__all__ = [
    "ALL_WARM",
    "DEFAULTS",
    "HOLDING",
    "REASONS",
    "STATES",
    "TRADING",
    "TradingModel",
    "cancel_overdue",
    "deadline",
    "decide",
    "find_overdue",
    "holding",
    "on_fill",
    "warm_bits",
    "warm_head",
]
