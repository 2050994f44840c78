"""Pruning while a net trains: the density follows a cubic schedule, with regrowth and 2:4 if wanted.

    pruner = Pruner(net.modules(), Schedule(density=0.2, begin=100, end=800))
    for batch in batches:
        loss(net, batch).backward()
        pruner.before_step()        # reads gradients: pruned weights may be exchanged for better ones
        optimiser.step()
        pruner.after_step()         # moves the density along the schedule

What the masks are for: below a third of the weights the kept ones alone are multiplied, forward and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bicep import pruning
from bicep.layers import BICEPLayer


@dataclass(slots=True, frozen=True)
class Schedule:
    """Steps of the optimiser from the dense net to the final density."""

    density: float
    begin: int = 0
    end: int = 1
    every: int = 10  # steps between two changes
    regrow_every: int = 0  # steps between two exchanges; 0 = what is pruned stays pruned
    regrow_share: float = 0.1  # of the kept weights, exchanged at a time; falls to 0 at `end`
    two_of_four: bool = False  # at `end`, instead of a density: the two largest of four neighbours

    def __post_init__(self) -> None:
        """Raise ValueError for values that make no sense together."""
        pruning.cubic(0, self.begin, self.end, self.density)
        if self.every < 1 or self.regrow_every < 0 or not 0 <= self.regrow_share < 1:
            msg = f"every {self.every}, regrow_every {self.regrow_every}, regrow_share {self.regrow_share}"
            raise ValueError(msg)
        if self.two_of_four and self.regrow_every:
            msg = "2:4 and regrowth exclude each other: an exchange does not keep two of four"
            raise ValueError(msg)


class Pruner:
    """Moves the masks of BICEPLayers along a schedule; other modules are left alone."""

    def __init__(self, modules: Iterable[nn.Module], schedule: Schedule) -> None:
        self.layers = [module for module in modules if isinstance(module, BICEPLayer)]
        if not self.layers:
            msg = "no BICEPLayer to prune: bicep.accelerate(module) puts them in"
            raise ValueError(msg)
        self.schedule = schedule
        self.step = 0

    def _exchanges_at(self, step: int) -> bool:
        plan = self.schedule
        return bool(plan.regrow_every) and step < plan.end and step % plan.regrow_every == 0 and step > 0

    def before_step(self) -> None:
        """Exchange pruned weights when it is time; call it between backward and the optimiser's step."""
        plan = self.schedule
        if not self._exchanges_at(self.step):
            return
        share = plan.regrow_share * (1 - self.step / plan.end)
        for layer in self.layers:
            grad = layer.weight.grad
            if grad is None or not layer.is_pruned:
                continue
            mask = pruning.regrown(layer.mask, layer.weight, grad, share)
            with torch.no_grad():  # what is woken begins at 0, what is dropped does not come back by size
                layer.weight.masked_fill_(mask ^ layer.mask, 0.0)
                grad.masked_fill_(~mask, 0.0)
            layer.set_mask(mask)

    def after_step(self) -> None:
        """Count a step and prune to the schedule's density when it is time."""
        self.step += 1
        plan = self.schedule
        if plan.begin < self.step <= plan.end and (self.step % plan.every == 0 or self.step == plan.end):
            density = pruning.cubic(self.step, plan.begin, plan.end, plan.density)
            for layer in self.layers:
                if plan.two_of_four:
                    self._towards_two_of_four(layer)
                else:
                    layer.density = density
        for layer in self.layers:
            layer.regrow = self._exchanges_at(self.step)

    def _towards_two_of_four(self, layer: BICEPLayer) -> None:
        """Keep the two largest of four, from the middle of the schedule on; odd layers stay dense."""
        if layer.in_features % 4 == 0 and 2 * self.step >= self.schedule.begin + self.schedule.end:
            layer.prune_2_4()
