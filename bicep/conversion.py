"""From a PyTorch module to the hot plan, for any MLP whose arithmetic the plan's kernel can do.

The kernel computes: linear, tanh-GELU, dropout, linear, tanh-GELU, dropout, two heads (mean and log
variance).  What else fits into that, exactly:

    fewer layers        x = gelu(x) - gelu(-x) in the tanh form too, so two units carry a number through
    ReLU                relu(x) = gelu(k x) / k up to 0.17 / k; k is 2^20, and a power of two costs no digits
    LeakyReLU           relu(x) - slope * relu(-x), two units of which one is 0
    BatchNorm1d         in evaluation it is a factor and an offset: they go into the linear layer beside it
    two linear layers   with nothing in between are one
    one output          the log variance is a constant
    any dropout         other probabilities are another draw of the mask bank and a factor in the weights
    one input tensor    its first n_tech columns are the features, the rest is the news half

Anything else (SiLU, more layers, a residual) is refused in one line that says what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

import numpy as np
from torch import nn

from bicep.chain import Layer, Matrix, chain_of, refuse
from bicep.masks import DROP_PROBABILITY, KEEP_ALL, keep_level
from bicep.plan import EXPERTS, Plan, Weights, encode, ladder
from bicep.plan.layout import WIDTH_MAX

_LINEARS: Final = 3
_FOLDED: Final = 1 - DROP_PROBABILITY  # the kernel divides what it keeps by this
SPARSE_SHARE: Final = 0.5  # of the second layer's weights: above it the dense kernel is as fast
_SHARP: Final = 2.0**20  # gelu(_SHARP * x) / _SHARP is relu(x) to 1.6e-7


def _sharpened(chain: list[Layer]) -> list[Layer]:
    """Return the same layers with GELUs in place of ReLUs; the layer behind takes what that changes."""
    made = [chain[0]]
    for following in chain[1:]:
        last = made.pop()
        if last.slope is None:
            made += [last, following]
            continue
        sides = np.array([1.0]) if last.slope == 0 else np.array([1.0, -1.0])
        back = np.array([1.0]) if last.slope == 0 else np.array([1.0, -last.slope])
        weight, bias = np.kron(sides[:, None], last.weight), np.kron(sides, last.bias)
        undone = np.kron(back[None], following.weight) / _SHARP
        made.append(Layer(weight * _SHARP, bias * _SHARP, activated=True, drop=last.drop))
        made.append(replace(following, weight=undone))
    return made


def _carried(weight: Matrix, bias: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return a layer of twice the units, weight and bias, and the matrix that undoes its GELU."""
    back = np.kron(np.eye(len(weight)), np.array([[1.0, -1.0]]))
    return np.repeat(weight, 2, axis=0) * back.sum(0)[:, None], np.repeat(bias, 2) * back.sum(0), back


def _filled(chain: list[Layer]) -> list[Layer]:
    """Return three layers that compute the same as one, two or three."""
    while len(chain) < _LINEARS:
        last = chain[-1]
        weight, bias, back = _carried(last.weight, last.bias)
        chain = [*chain[:-1], Layer(weight, bias, activated=True), Layer(back, np.zeros(len(back)))]
    return chain


def weights_of(
    module: nn.Module, n_tech: int, log_variance: float = 0.0, *, erf_as_tanh: bool = False
) -> tuple[Weights, tuple[int, int]]:
    """Return the plan's weights of an MLP and what it keeps of both layers; see build_plan."""
    chain = chain_of(module, erf_as_tanh=erf_as_tanh)
    if not 1 <= len(chain) <= _LINEARS:
        refuse(f"it has {len(chain)} linear layers, the plan's kernel has up to {_LINEARS}")
    if chain[-1].activated:
        refuse("an activation stands behind its last layer, the plan's outputs are linear")
    outputs, inputs = len(chain[-1].weight), chain[0].weight.shape[1]
    if outputs not in (1, 2):
        refuse(f"it has {outputs} outputs, the plan has a mean and a log variance")
    if not 1 <= n_tech <= inputs:
        refuse(f"n_tech is {n_tech}, it has {inputs} inputs")
    if outputs == 1:
        last = chain[-1]
        last.weight = np.concatenate([last.weight, np.zeros_like(last.weight)])
        last.bias = np.append(last.bias, log_variance)
    one, two, heads = _filled(_sharpened(chain))
    widths = [inputs, len(one.weight), len(two.weight)]
    if max(widths) > WIDTH_MAX:
        refuse(f"a layer of {max(widths)} units, the plan's limit is {WIDTH_MAX}")
    keep = (keep_level(one.drop), keep_level(two.drop))
    factors = [_FOLDED * KEEP_ALL / level for level in keep]
    news = one.weight[:, n_tech:] if n_tech < inputs else np.zeros((len(one.weight), 1))
    arrays = (
        one.weight[:, :n_tech], news, one.bias, two.weight * factors[0], two.bias,
        heads.weight[0] * factors[1], heads.weight[1] * factors[1], heads.bias,
    )  # fmt: skip
    return Weights(*(np.ascontiguousarray(array, np.float32) for array in arrays)), keep


def build_plan(
    module: nn.Module | Sequence[nn.Module],
    *,
    n_tech: int | None = None,
    log_variance: float = 0.0,
    erf_as_tanh: bool = False,
    densities: Sequence[float] = (1.0,),
    label_scale: float = 1.0,
    seed: int = 0,
    symbols_max: int = 8_192,
) -> Plan:
    """Turn an MLP (or one per tag) into a Plan: `infer(plan.state, ...)` computes what the module computes.

    A module with a method `weights()` (FusionNet) is asked for them.  Of any other, the first n_tech inputs
    are features (all by default) and the rest is the news embedding; log_variance is that of a module with
    one output.  Mean and variance are of as many samples as the plan has; a module without dropout has no
    spread.  erf_as_tanh: serve an nn.GELU() of the erf form by the tanh form (apart by up to 5e-4 a unit).
    densities: of the ladder; its rungs are pruned from the module by magnitude.  A module that is pruned
    itself gets a rung of its own density, without further loss, and that one serves.
    Raises PlanError with one line that says what the plan's kernel cannot do.
    """
    modules = [module] if isinstance(module, nn.Module) else list(module)
    if len(modules) not in (1, EXPERTS):
        refuse(f"{len(modules)} modules, wanted is one, or {EXPERTS} (one per tag)")
    experts, keeps = [], []
    for part in modules:
        if callable(getattr(part, "weights", None)):
            try:
                experts.append(cast("Any", part).weights())
            except ValueError as error:
                refuse(str(error), error)
            keeps.append((0, 0))
            continue
        inputs = next((p.shape[1] for p in part.parameters() if p.dim() > 1), 0)
        made, keep = weights_of(
            part, inputs if n_tech is None else n_tech, log_variance, erf_as_tanh=erf_as_tanh
        )
        experts.append(made)
        keeps.append(keep)
    if any(keep != keeps[0] for keep in keeps):
        refuse(f"the modules drop with different probabilities: {keeps}")
    served = list(range(EXPERTS)) if len(experts) == EXPERTS else [0] * EXPERTS
    experts = experts if len(experts) == EXPERTS else experts * EXPERTS
    own = max(float(np.count_nonzero(expert.second)) / expert.second.size for expert in experts)
    is_sparse = 0 < own <= SPARSE_SHARE
    steps = sorted({*densities, own} if is_sparse else set(densities), reverse=True)
    image = encode(experts, served, label_scale, ladder(steps), keep=keeps[0])
    plan = Plan.from_image(image, symbols_max=symbols_max, seed=seed)
    plan.set_rung(steps.index(own) if is_sparse else 0)
    return plan
