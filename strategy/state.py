"""What the strategy agent keeps: its head, a row for each symbol, and the record in the making.

Written by the strategy loop alone, after its owner (agent.py) has filled in the addresses.
"""

from __future__ import annotations

from bicep.plan import INFERENCE
from nimbus.messages import DECISION, NEWS
from ringbuf.records import record
from strategy.features import COLUMNS

STRATEGY = record(
    "STRATEGY",
    """
    i8  features      address: Features
    i8  normalisation address: Normalisation
    i8  engine        address: ContradictionEngine
    i8  model         address: TradingModel
    i8  plan          address: a plan, 0 = model off
    i8  news          address of the NEWS cells by locate, 0 = no news
    i8  recorder      address: Recorder, 0 = none
    i8  events        ring of BOOK_EVENT, in
    i8  fills         ring of FILL, in
    i8  intents       ring of INTENT, out
    i8  decisions     ring of DECISION, out, to the journal
    i8  symbols_max   locates below it are known
    i8  interval_ns   a symbol asks the model at most so often, by exchange time; 0 = each change
    i8  journal       JOURNAL_ALL or JOURNAL_ACTIONS
    i8  journal_tags  1 = with the model off, a changed tag is journalled
    i8  seen          address: news version and time of the last decision, by locate
    i8  decision      decisions so far: the number of the last one
    i8  handled       events taken
    i8  filled        fills taken
    i8  intended      intents pushed
    i8  asked         inferences asked for
    i8  faults        inferences refused
    i8  lost          decisions that found their ring full
    i8  news_torn     news cells that could not be read
    3i8 tags          decisions by tag
    i8  clock         address: CLOCK that times inference, 0 = not timed
    i8  inference_ns  address: histogram of inference
    i8  rule          address: LINEAR, asked when there is no plan; 0 = none
    i8  sampler       address: SAMPLER of the shadow evaluations, 0 = none
    i8  pad           zero
    """,
)

SEEN = record(
    "SEEN",
    """
    i8  news_version  version of the news cell whose embedding the plan holds
    i8  decided_ns    exchange time of the last decision
    """,
    line=16,
)

SCRATCH = record(
    "STRATEGY_SCRATCH",
    f"""
    {DECISION.size}u1  decision   the decision in the making
    {INFERENCE.size}u1 inference  the expert's answer
    {COLUMNS}f8 inputs       normalised features
    {NEWS.size}u1      news  the symbol's news record
    """,
)
