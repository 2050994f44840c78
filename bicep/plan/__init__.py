"""The hot inference plan: FusionNet's experts as packed weights and one kernel, with MC dropout.

`Plan.load(folder, segment, symbols_max).state` is the address that `infer` and `refresh_news` take.
"""

from bicep.plan.kernels import infer, infer_batch, news_version, refresh_news
from bicep.plan.layout import (
    BAD_EXPERT,
    BAD_SYMBOL,
    EXPERTS,
    INFERENCE,
    JOB,
    NAN_INPUT,
    NAN_OUTPUT,
    NEWS_BUSY,
    OK,
    STATUS_NAMES,
)
from bicep.plan.pack import PlanError, Weights, decode, encode
from bicep.plan.store import Plan, read_manifest, save

__all__ = [
    "BAD_EXPERT",
    "BAD_SYMBOL",
    "EXPERTS",
    "INFERENCE",
    "JOB",
    "NAN_INPUT",
    "NAN_OUTPUT",
    "NEWS_BUSY",
    "OK",
    "STATUS_NAMES",
    "Plan",
    "PlanError",
    "Weights",
    "decode",
    "encode",
    "infer",
    "infer_batch",
    "news_version",
    "read_manifest",
    "refresh_news",
    "save",
]
