"""Bytes of a plan: its file, its memory and its answer, declared once.

File: PLAN_FILE, then experts x rungs SLOT rows, then packs, each on a cache line of its own.

    news pack   (one per expert)          b1 [H1] | W_s in tiles [H1/64][n_news][64]
    dense pack  (one per expert and rung) W_x in tiles [H1/64][n_tech][64]
                                          | groups [H2/8] of: W2 [H1][8], b2 [8], mean head [8],
                                            log-variance head [8], zeros [8]
                                          | bias of the mean, bias of the log-variance, zeros [14]

All float32, little-endian.  H1 is a multiple of 64 and H2 of 8: a net of other sizes is filled up with
units of zero weight, which answer zero.  Tiles are in the order in which the kernel reads them: one pass,
front to back.  In memory the file's image stands unchanged; the PLAN record points at what it needs.
"""

from __future__ import annotations

from typing import Final

from ringbuf.records import record

MAGIC: Final = 0x4E41_4C50_4345_4942  # "BICEPLAN" read as a little-endian word
PLAN_VERSION: Final = 1

TILE: Final = 64  # units of the first layer that one instruction carries
GROUP: Final = 8  # units of the second layer that one instruction carries
GROUP_TAIL: Final = 4 * GROUP  # b2, mean head, log-variance head, zeros
HEADS: Final = 16  # two biases and zeros

EXPERTS: Final = 3  # one per tag: none, overhype, underhype
RUNGS_MAX: Final = 16
WIDTH_MAX: Final = 4_096  # of any layer
LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -12.0, 12.0  # the head's output is clamped to this, in training too
DENSE, CSR = 0, 1  # SLOT.kind; CSR rungs come with the ladder

# What infer and refresh_news return.
OK, BAD_EXPERT, BAD_SYMBOL, NAN_INPUT, NAN_OUTPUT, NEWS_BUSY = 1, -1, -2, -3, -4, -5
STATUS_NAMES: Final = {
    OK: "ok",
    BAD_EXPERT: "bad_expert",
    BAD_SYMBOL: "bad_symbol",
    NAN_INPUT: "nan_input",
    NAN_OUTPUT: "nan_output",
    NEWS_BUSY: "news_busy",
}

INFERENCE = record(
    "INFERENCE",
    """
    f8  mean          expected return over the model's horizon
    f8  epistemic     variance of the samples' means (n - 1): what the model does not know
    f8  aleatoric     mean of the samples' variances: what nobody can know
    i8  agree         samples whose sign is the mean's, of 32
    i8  mask_index    row of the mask bank
    i8  news_version  version of the cached news half, 0 = no news yet
    u4  bank          number of the mask bank
    i2  status        OK, or why there is no answer (then everything else but expert is 0)
    u2  rung          rung of the ladder, 0 = dense
    u1  expert        tag that was asked for
    u1  served        expert that answered: `none` stands in for a starved tag
    6u1 pad           zero
    """,
)

JOB = record(
    "JOB",
    """
    i8  features    address of the normalised features
    i8  sequence    market sequence number behind it
    i8  symbol      stock locate
    i8  expert      tag
    4i8 pad         zero
    """,
)

PLAN_FILE = record(
    "PLAN_FILE",
    """
    i8  magic        BICEPLAN
    u4  version      PLAN_VERSION
    u4  n_tech       features
    u4  n_news       dimensions of an embedding
    u4  hidden_one   units of the first layer, a multiple of 64
    u4  hidden_two   units of the second layer, a multiple of 8
    u4  experts      rows of the rung table: experts x rungs
    u4  rungs        rungs of the ladder
    u4  samples      Monte-Carlo samples
    f8  label_scale  the net's output of 1 is a return of this size
    i8  size         bytes of the whole file
    u4  keep_one     a unit of the first layer is kept with probability keep_one/2^16; 0 stands for 7/8
    u4  keep_two     the same of the second layer
    """,
)

SLOT = record(
    "SLOT",
    """
    i8  pack        dense or CSR pack: offset in the file; in memory its address
    i8  pack_size   bytes
    i8  news        news pack of the expert: offset in the file; in memory its address
    i8  news_size   bytes
    f8  density     share of the weights kept
    f8  error       validation error above the dense rung's
    u4  kind        DENSE, CSR
    u4  served      expert that answers for this tag
    i8  pad         zero
    """,
)

PLAN = record(
    "PLAN",
    """
    i8  table         address of the SLOT rows
    i8  experts       of them, rungs rows per expert
    i8  rungs         of the ladder
    i8  rung          in use; one atomic word, written by the control loop
    i8  symbols_max   symbols with a news cell
    i8  n_tech        features
    i8  n_news        dimensions of an embedding
    i8  hidden_one    units of the first layer
    i8  hidden_two    units of the second layer
    f8  label_scale   the net's output of 1 is a return of this size
    i8  cells         address of the news cells, experts per symbol
    i8  cell_size     bytes of one
    i8  bank          address of the mask bank
    i8  bank_rows     rows, a power of two
    i8  bank_number   of the bank
    i8  scratch       address of the SCRATCH area
    i8  inferences    answered                       (this line: written by the agent that infers)
    i8  bad_expert    refused: expert out of range
    i8  bad_symbol    refused: symbol out of range
    i8  nan_input     refused: a feature or an embedding is not finite
    i8  nan_output    refused: the answer is not finite
    i8  news_busy     refused: the news cell was being written for too long
    i8  refreshes     news halves computed
    i8  pad           zero
    """,
)


def padded(width: int, multiple: int) -> int:
    """Return width rounded up to a multiple."""
    return -(-width // multiple) * multiple


def news_pack_size(n_news: int, hidden_one: int) -> int:
    """Return the bytes of a news pack."""
    return 4 * hidden_one * (1 + n_news)


def dense_pack_size(n_tech: int, hidden_one: int, hidden_two: int) -> int:
    """Return the bytes of a dense pack."""
    groups = hidden_two // GROUP
    return 4 * (hidden_one * n_tech + groups * (hidden_one * GROUP + GROUP_TAIL) + HEADS)
