"""BICEP, adaptive compute: plans that run inside kernels, and layers that train as PyTorch's do.

    bicep.BICEPLayer           nn.Linear with mask, activation and dropout in one operation
    bicep.accelerate(module)   put them into a model, and say what was swapped and what was not
    bicep.build_plan(module)   turn an MLP into the plan that kernels call
    bicep.export_onnx(...)     write a pruned model for other runtimes
    bicep.Pruner, Schedule     prune while a net trains
    bicep.indicators(...)      RSI, EMA, MACD, ATR of many instruments in one call; rolling_correlation,
                               price_paths, spectral_features, cross_correlation beside it

These names load PyTorch when they are first used; the plan itself never does.  `python -m bicep.selfcheck`
compares every kernel of this machine with NumPy.  The user's page is docs/bicep.md.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BICEPFunction": "bicep.function",
    "BICEPLayer": "bicep.layers",
    "Controller": "bicep.function",
    "Pruner": "bicep.training",
    "Schedule": "bicep.training",
    "accelerate": "bicep.swap",
    "build_plan": "bicep.conversion",
    "cross_correlation": "bicep.spectrum",
    "export_onnx": "bicep.export",
    "indicators": "bicep.series",
    "price_paths": "bicep.series",
    "rolling_correlation": "bicep.series",
    "spectral_features": "bicep.spectrum",
}


def __getattr__(name: str) -> Any:
    """Load what the name stands for."""
    if name not in _HOMES:
        msg = f"module 'bicep' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)
