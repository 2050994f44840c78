"""Bytes of a plan: its file, its memory and its answer, declared once.

File: PLAN_FILE, then experts x rungs SLOT rows, then packs, each on a cache line of its own.

    news pack   (one per expert)          b1 [H1] | W_s in tiles [H1/64][n_news][64]
    dense pack  (one per expert and rung) W_x in tiles [H1/64][n_tech][64]
                                          | groups [H2/8] of: W2 [H1][8], b2 [8], mean head [8],
                                            log-variance head [8], zeros [8]
                                          | bias of the mean, bias of the log-variance, zeros [14]
    CSR pack   (one per expert and rung)  W_x in tiles [H1/64][n_tech][64]
                                          | bias of the mean, bias of the log-variance, zeros [14]
                                          | int32 steps of each slice [H2/8], zeros to the end of the line
                                          | slices [H2/8] of: b2 [8], mean head [8], log-variance head [8],
                                            int32 unit [8], values [steps][8], int16 columns [steps][8],
                                            zeros to the end of the line

All float32 where nothing else is said, little-endian.  H1 is a multiple of 64 and H2 of 8: a net of other
sizes is filled up with units of zero weight, which answer zero.  Tiles are in the order in which the kernel
reads them: one pass, front to back.  In memory the file's image stands unchanged; the PLAN record points at
what it needs.

A CSR pack is compressed rows in slices of eight: the rows of W2 sorted by length, eight neighbours side by
side and as long as the longest of them.  So eight sums run at once, one branch ends eight rows, and what is
filled up (weight 0, column 0) is a few per cent.  Rows, not weights, are out of order: `unit` says whose
bias, heads and dropout masks a row has.  A column is an input of the layer; its byte offset is computed.
W_x stays whole in every rung: one unit there is one lane, so a pruned weight would save nothing.
The news pack is the same for all rungs of an expert: news halves stay valid when the rung changes.
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
LINE: Final = 64  # bytes of a cache line: where packs and slices begin

EXPERTS: Final = 3  # one per tag: none, overhype, underhype
RUNGS_MAX: Final = 16
WIDTH_MAX: Final = 4_096  # of any layer
LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -12.0, 12.0  # the head's output is clamped to this, in training too
DENSE, CSR = 0, 1  # SLOT.kind
COLUMN_SIZE: Final = 2
LADDER: Final = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05)  # densities of the rungs

# PLAN.rung is one word: rung + RUNGS_MAX * mode.  Both are read together, once per inference.
MC_32, MC_16, MC_8, ANALYTIC = 0, 1, 2, 3
MODE_SAMPLES: Final = (32, 16, 8, 0)  # by mode, 32 >> mode; the analytic mode draws none

# What infer and refresh_news return.
OK, BAD_EXPERT, BAD_SYMBOL, NAN_INPUT, NAN_OUTPUT, NEWS_BUSY = 1, -1, -2, -3, -4, -5
BAD_RUNG: Final = -6
STATUS_NAMES: Final = {
    OK: "ok",
    BAD_EXPERT: "bad_expert",
    BAD_SYMBOL: "bad_symbol",
    NAN_INPUT: "nan_input",
    NAN_OUTPUT: "nan_output",
    NEWS_BUSY: "news_busy",
    BAD_RUNG: "bad_rung",
}

INFERENCE = record(
    "INFERENCE",
    """
    f8  mean          expected return over the model's horizon
    f8  epistemic     variance of the samples' means (n - 1): what the model does not know
    f8  aleatoric     mean of the samples' variances: what nobody can know
    i8  agree         samples whose sign is the mean's, scaled to 32
    i8  mask_index    row of the mask bank, 0 in the analytic mode
    i8  news_version  version of the cached news half, 0 = no news yet
    u4  bank          number of the mask bank
    i2  status        OK, or why there is no answer (then everything else but expert is 0)
    u2  rung          rung + RUNGS_MAX * mode; 0 = dense, 32 samples
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
    f8  density     share of the second layer's weights kept, as asked for
    f8  error       root mean square of (mean - the dense rung's), over that of the dense rung's mean
    u4  kind        DENSE, CSR
    u4  served      expert that answers for this tag
    i8  kept        weights of the second layer that a CSR pack holds, 0 in a dense one
    """,
)

PLAN = record(
    "PLAN",
    """
    i8  table         address of the SLOT rows
    i8  experts       of them, rungs rows per expert
    i8  rungs         of the ladder
    i8  rung          in use, with its mode; one atomic word, written by the control loop
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
    i8  bad_rung      refused: rung word out of range
    f8  mean_one      mean of the first dropout's factor: 0 or 8/7     (this line: for the analytic mode)
    f8  odds_one      its variance over its squared mean: dropped for one kept
    f8  mean_two      mean of the second dropout's factor
    f8  odds_two      the same of the second dropout
    4i8 pad           zero
    """,
)

# One inference's working memory, owned by the agent that infers.
SCRATCH = record(
    "SCRATCH",
    f"""
    {WIDTH_MAX}f4 inputs    features, or an embedding, as float32
    {WIDTH_MAX}f4 start     cached news half
    {WIDTH_MAX}f4 hidden    first layer
    64f4        samples   mean and log variance of the 32 samples
    """,
)
WORK_AT: Final = SCRATCH.size  # behind it: what a mode computes on the way, see work_size


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


def csr_slices_at(n_tech: int, hidden_one: int, hidden_two: int) -> int:
    """Return where the slices of a CSR pack begin: behind W_x, the heads' line and the table of steps."""
    return 4 * (hidden_one * n_tech + HEADS) + padded(4 * (hidden_two // GROUP), LINE)


def slice_size(steps: int) -> int:
    """Return the bytes of one slice of a CSR pack."""
    return padded(4 * GROUP_TAIL + steps * GROUP * (4 + COLUMN_SIZE), LINE)


def work_size(hidden_one: int, hidden_two: int) -> int:
    """Return the bytes behind SCRATCH: float32[hidden_one][32] samples, or the analytic mode's vectors."""
    return 4 * max(32 * hidden_one, 3 * (hidden_two + GROUP) + 2 * hidden_two + 2 * hidden_one)
