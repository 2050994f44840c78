"""What else one could run for an MC-32 inference: ONNX Runtime and torch, with the weights of an expert.

Every rival gets dropout masks as inputs or draws its own, answers mean and log variance of each of the 32
samples, and is asked from Python, as its users ask it.  Means and variances over the samples are left out
of its time.  "cached" means that the news half of the first layer is an input; otherwise the embedding is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as fn

from bicep.masks import DROP_PROBABILITY, SAMPLES
from bicep.plan import Weights

KEEP = 1 - DROP_PROBABILITY
Heads = Callable[[], np.ndarray]


def _value(name: str, *shape: int):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def onnx_model(weights: Weights, *, cached: bool) -> bytes:
    """Return FusionNet as a graph: the first layer once, then 32 masked rows (masks are scaled by 1/keep)."""
    one, two = weights.second.shape[::-1]
    heads = np.stack([weights.mean_head, weights.variance_head])
    constants = {
        "tech_w": weights.tech.T, "second_w": weights.second.T, "second_b": weights.bias_two,
        "heads_w": heads.T, "heads_b": weights.biases,
    }  # fmt: skip
    inputs = [_value("tech", 1, weights.tech.shape[1])]
    if cached:
        nodes = [helper.make_node("Gemm", ["tech", "tech_w", "half"], ["first"])]
        inputs.append(_value("half", 1, one))
    else:
        constants["news_w"], constants["first_b"] = weights.news.T, weights.bias_one
        nodes = [
            helper.make_node("Gemm", ["news", "news_w", "first_b"], ["half"]),
            helper.make_node("Gemm", ["tech", "tech_w", "half"], ["first"]),
        ]
        inputs.append(_value("news", 1, weights.news.shape[1]))
    inputs += [_value("mask_one", SAMPLES, one), _value("mask_two", SAMPLES, two)]
    nodes += [
        helper.make_node("Gelu", ["first"], ["first_active"], approximate="tanh"),
        helper.make_node("Mul", ["first_active", "mask_one"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "second_w", "second_b"], ["second"]),
        helper.make_node("Gelu", ["second"], ["second_active"], approximate="tanh"),
        helper.make_node("Mul", ["second_active", "mask_two"], ["outputs"]),
        helper.make_node("Gemm", ["outputs", "heads_w", "heads_b"], ["heads"]),
    ]
    initialisers = [
        numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        for name, array in constants.items()
    ]
    graph = helper.make_graph(nodes, "fusionnet", inputs, [_value("heads", SAMPLES, 2)], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnx_session(weights: Weights, inputs: dict[str, np.ndarray], *, cached: bool) -> Heads:
    """Return a call of ONNX Runtime in its fastest way: bound inputs and output, one thread, all fusions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        onnx_model(weights, cached=cached), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name in [entry.name for entry in session.get_inputs()]:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(inputs[name]))
    heads = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((SAMPLES, 2), np.float32))
    binding.bind_ortvalue_output("heads", heads)

    def call() -> np.ndarray:
        session.run_with_iobinding(binding)
        return heads

    call.heads = heads.numpy
    return call


def torch_functions(weights: Weights, inputs: dict[str, np.ndarray], *, cached: bool) -> dict[str, Heads]:
    """Return calls of torch: eager as one writes it (32 copies of the row, own dropout), and a better one.

    The naive one is not helped by a cached half beyond the sum it stands for; `shared` takes the masks of
    `inputs`, so its answer can be compared.
    """
    parts = {name: torch.from_numpy(np.array(getattr(weights, name))) for name in Weights.__slots__}
    heads = torch.stack([parts["mean_head"], parts["variance_head"]])
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tech, half = given["tech"].repeat(SAMPLES, 1), given["half"].repeat(SAMPLES, 1)
    news = given["news"].repeat(SAMPLES, 1)
    joined, whole = torch.cat([tech, news], 1), torch.cat([parts["tech"], parts["news"]], 1)

    def tail(hidden, second):
        return fn.linear(second(fn.gelu(fn.linear(hidden, parts["second"], parts["bias_two"]),
                                        approximate="tanh")), heads, parts["biases"])  # fmt: skip

    def naive():
        first = (
            fn.linear(tech, parts["tech"]) + half if cached else fn.linear(joined, whole, parts["bias_one"])
        )
        dropped = fn.dropout(fn.gelu(first, approximate="tanh"), DROP_PROBABILITY)
        return tail(dropped, lambda active: fn.dropout(active, DROP_PROBABILITY))

    def shared(tech, half, news, mask_one, mask_two):
        known = half if cached else fn.linear(news, parts["news"], parts["bias_one"])
        first = fn.gelu(fn.linear(tech, parts["tech"]) + known, approximate="tanh")
        return tail(first * mask_one, lambda active: active * mask_two)

    arguments = [given[name] for name in ("tech", "half", "news", "mask_one", "mask_two")]
    return {"naive": naive, "shared": lambda: shared(*arguments), "function": (shared, arguments)}
