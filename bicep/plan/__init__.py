"""The hot inference plan: FusionNet's experts as packed weights and one kernel, with MC dropout.

`Plan.load(folder, segment, symbols_max).state` is the address that `infer` and `refresh_news` take.
"""

from bicep.plan.kernels import infer, infer_batch, news_version, refresh_expert, refresh_news, set_rung
from bicep.plan.layout import (
    ANALYTIC,
    BAD_EXPERT,
    BAD_RUNG,
    BAD_SYMBOL,
    EXPERTS,
    INFERENCE,
    JOB,
    LADDER,
    MC_8,
    MC_16,
    MC_32,
    MODE_SAMPLES,
    NAN_INPUT,
    NAN_OUTPUT,
    NEWS_BUSY,
    OK,
    RUNGS_MAX,
    STATUS_NAMES,
)
from bicep.plan.pack import decode, encode
from bicep.plan.store import Plan, read_manifest, save
from bicep.plan.weights import PlanError, Rung, Weights, ladder, pruned

__all__ = [
    "ANALYTIC",
    "BAD_EXPERT",
    "BAD_RUNG",
    "BAD_SYMBOL",
    "EXPERTS",
    "INFERENCE",
    "JOB",
    "LADDER",
    "MC_8",
    "MC_16",
    "MC_32",
    "MODE_SAMPLES",
    "NAN_INPUT",
    "NAN_OUTPUT",
    "NEWS_BUSY",
    "OK",
    "RUNGS_MAX",
    "STATUS_NAMES",
    "Plan",
    "PlanError",
    "Rung",
    "Weights",
    "decode",
    "encode",
    "infer",
    "infer_batch",
    "ladder",
    "news_version",
    "pruned",
    "read_manifest",
    "refresh_expert",
    "refresh_news",
    "save",
    "set_rung",
]
