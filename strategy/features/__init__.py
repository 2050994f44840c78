"""Features: what the experts see of a symbol, one vector of 32 columns (columns.py names them).

`Features` owns the memory; the kernels `update` (one event), `normalise` and the accessors take its
address.  See update.py for what is computed and when, bars.py for the indicators.
"""

from strategy.features.columns import COLUMNS, FEATURES, INDEX, NAMES, VECTOR, Feature, markdown
from strategy.features.state import (
    FEATURE_STATE,
    FEATURES_STATE,
    NORMALISATION,
    Features,
    Normalisation,
    digest,
    mid_px2,
    normalise,
    vector_at,
    volatility,
    warm_mask,
    warm_row,
)
from strategy.features.update import BAD_LOCATE, BAR_CLOSED, RUN_BEGAN, TWO_SIDED, VECTOR_WRITTEN, update

__all__ = [
    "BAD_LOCATE",
    "BAR_CLOSED",
    "COLUMNS",
    "FEATURES",
    "FEATURES_STATE",
    "FEATURE_STATE",
    "INDEX",
    "NAMES",
    "NORMALISATION",
    "RUN_BEGAN",
    "TWO_SIDED",
    "VECTOR",
    "VECTOR_WRITTEN",
    "Feature",
    "Features",
    "Normalisation",
    "digest",
    "markdown",
    "mid_px2",
    "normalise",
    "update",
    "vector_at",
    "volatility",
    "warm_mask",
    "warm_row",
]
