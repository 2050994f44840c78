"""Write a model with BICEPLayers as ONNX, for other runtimes; dropout masks are inputs of the graph.

Runtimes leave Dropout out at inference, so Monte-Carlo dropout cannot be exported as an operator.  With
`dropout_inputs` each dropout of the model becomes a multiplication by a 0/1 input: feed one mask per sample,
and as many rows of the input as there are samples.  Pruned weights are written as zeros.
TensorRT reads the file (`trtexec --onnx=FILE`); that route is not tested here.
"""

from __future__ import annotations

import importlib
import logging
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from bicep.cpu.rows import GELU, RELU, SILU
from bicep.layers import BICEPLayer

OPSET: Final = 20  # the first with Gelu


class ExportError(Exception):
    """The model cannot be written; the message is one line that says why."""


def absent() -> str:
    """Return why ONNX files cannot be written here, or nothing."""
    for module in ("onnx", "onnxscript"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{module} is absent: {error}"
    return ""


def translations() -> dict[Any, Any]:
    """Return the custom translation table of torch.onnx.export for BICEP's operations."""
    op = importlib.import_module("onnxscript").opset20

    def sums(x: Any, weight: Any, mask: Any, start: Any) -> Any:
        kept = op.Where(mask, weight, op.CastLike(op.Constant(value_float=0.0), weight))
        product = op.MatMul(x, op.Transpose(kept, perm=[1, 0]))
        return product if start is None else op.Add(product, start)

    def linear(x: Any, weight: Any, mask: Any, bias: Any = None, regrow: bool = False) -> Any:
        del regrow
        return sums(x, weight, mask, bias)

    def fused(
        x: Any, weight: Any, mask: Any, start: Any = None, state: Any = None, draw: Any = None,
        activation: int = 0, level: int = 0, saves: bool = False, regrow: bool = False,
    ) -> Any:  # fmt: skip
        del level, saves, regrow
        if draw is not None:
            msg = "drawn dropout: export the model in evaluation mode, or with dropout_inputs"
            raise ExportError(msg)
        begins = start if state is None else op.Gather(start, state, axis=0)
        before = sums(x, weight, mask, begins)
        if activation == GELU:
            after = op.Gelu(before, approximate="tanh")
        elif activation == RELU:
            after = op.Relu(before)
        elif activation == SILU:
            after = op.Mul(before, op.Sigmoid(before))
        else:
            after = op.Identity(before)
        return after, op.Identity(before)

    return {
        torch.ops.bicep.masked_linear.default: linear,
        torch.ops.bicep.fused_linear.default: fused,
    }


class _Keep(nn.Module):
    """Stands where an nn.Dropout stood."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout, self.keep = p, None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the mask that is fed."""
        assert self.keep is not None
        return x * self.keep / (1 - self.dropout)


class _WithMasks(nn.Module):
    """A model whose dropouts take their masks from the call: forward(*inputs, *masks)."""

    def __init__(self, model: nn.Module, places: list[BICEPLayer | _Keep], count: int) -> None:
        super().__init__()
        self.model, self.places, self.count = model, places, count

    def forward(self, *values: Tensor) -> Any:
        """Set the masks, run the model, take them away."""
        inputs, masks = values[: self.count], values[self.count :]
        for place, mask in zip(self.places, masks, strict=True):
            object.__setattr__(place, "keep", mask)
        try:
            return self.model(*inputs)
        finally:
            for place in self.places:
                object.__setattr__(place, "keep", None)


@contextmanager
def _dropouts(model: nn.Module) -> Iterator[dict[str, BICEPLayer | _Keep]]:
    """Give every dropout of the model an attribute `keep`; afterwards the model is as it was."""
    found: dict[str, BICEPLayer | _Keep] = {}
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for name, module in list(model.named_modules()):
        if isinstance(module, BICEPLayer) and module.dropout > 0:
            found[name] = module
        elif type(module) is nn.Dropout and module.p > 0 and name:
            parent, _, own = name.rpartition(".")
            place = _Keep(module.p)
            replaced.append((model.get_submodule(parent), own, module))
            found[name] = place
            model.get_submodule(parent).register_module(own, place)
    try:
        yield found
    finally:
        for owner, own, module in replaced:
            owner.register_module(own, module)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to oneself that packages are missing which have nothing to do with the model."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _mask_shapes(
    model: nn.Module, places: dict[str, BICEPLayer | _Keep], inputs: tuple[Tensor, ...]
) -> list[Any]:
    """Run the model once and return the shape of what each dropout multiplies."""
    shapes: dict[str, torch.Size] = {}
    hooks = []
    for name, place in places.items():
        object.__setattr__(place, "keep", torch.ones(()))

        def see(_m: nn.Module, _i: Any, output: Tensor, name: str = name) -> None:
            shapes[name] = output.shape

        hooks.append(place.register_forward_hook(see))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for place in places.values():
            object.__setattr__(place, "keep", None)
    missing = [name for name in places if name not in shapes]
    if missing:
        msg = f"dropout {missing[0]} is not reached with these inputs"
        raise ExportError(msg)
    return [shapes[name] for name in places]


def export_onnx(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: pathlib.Path | str,
    *,
    dropout_inputs: bool = False,
    dynamic_rows: bool = True,
) -> list[str]:
    """Write the model in evaluation mode; return the names of the graph's inputs.

    inputs: tensors [rows, ...] with which the model is called.  dropout_inputs: see above; their names are
    `keep_` and the dropout's place in the model.  dynamic_rows: any number of rows (the same for all inputs).
    Raises ExportError, also when onnx or onnxscript is absent.
    """
    if reason := absent():
        raise ExportError(reason)
    was_training = model.training
    model.eval()
    try:
        with _dropouts(model) as found:
            places = found if dropout_inputs else {}
            if not dropout_inputs:
                for place in found.values():
                    if isinstance(place, _Keep):
                        object.__setattr__(place, "keep", torch.ones(()) * (1 - place.dropout))
            masks = [torch.ones(shape) for shape in _mask_shapes(model, places, inputs)] if places else []
            names = [f"input_{n}" for n in range(len(inputs))]
            names += [f"keep_{name.replace('.', '_')}" for name in places]
            shapes = tuple({0: torch.export.Dim("rows")} for _ in names) if dynamic_rows else None
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")  # the exporter's own
                torch.onnx.export(
                    _WithMasks(model, list(places.values()), len(inputs)), (*inputs, *masks), str(path),
                    dynamo=True, input_names=names, dynamic_shapes=(shapes,) if shapes else None,
                    custom_translation_table=translations(), opset_version=OPSET, verbose=False,
                    external_data=False,
                )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        msg = f"{path}: {str(error).strip().splitlines()[0]}"
        raise ExportError(msg) from error
    finally:
        model.train(was_training)
    return names
