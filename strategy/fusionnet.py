"""FusionNet: features and news in, expected return and its log variance out; defined once for all tags.

    concat(features, news) -> linear -> GELU -> dropout -> linear -> GELU -> dropout -> two heads

The first linear layer is kept as two halves, one per input.  With no dropout on the input their sum is the
layer on the concatenation, and the news half needs computing once per distinct news state only: in
training for the states of a batch, in the plan when news changes.  Labels are in units of label_scale.
The layers are BICEPLayers: product, activation and dropout are one operation, and any of them can be pruned.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from bicep.layers import BICEPLayer
from bicep.masks import DROP_PROBABILITY
from bicep.plan import Weights
from bicep.plan.layout import LOG_VARIANCE_MAX, LOG_VARIANCE_MIN

# P(up) = cdf(mean/sigma) of a normal is within 0.01 of a logistic of 1.702 times that.
_LOGIT_PER_SIGMA: Final = 1.702


class FusionNet(nn.Module):
    """One expert.  Its activation equals the plan's to 1e-6 (tests compare them over the float range)."""

    def __init__(
        self,
        n_tech: int = 32,
        n_news: int = 768,
        hidden: tuple[int, int] = (128, 64),
        p: float = DROP_PROBABILITY,
    ) -> None:
        super().__init__()
        self.p = p
        self.tech = BICEPLayer(n_tech, hidden[0], activation="gelu", dropout=p)
        self.news = BICEPLayer(n_news, hidden[0], bias=False)
        self.second = BICEPLayer(*hidden, activation="gelu", dropout=p)
        self.heads = BICEPLayer(hidden[1], 2)  # mean, log variance
        with torch.no_grad():
            bound = (n_tech + n_news) ** -0.5
            self.news.weight.uniform_(-bound, bound)
            self.heads.weight.mul_(0.1)  # begin near "no expected return, variance of the labels"
            self.heads.get_parameter("bias").zero_()

    def forward(
        self,
        tech: Tensor,
        news: Tensor,
        state: Tensor | None = None,
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mean and clamped log variance, one per row.

        tech [n, n_tech]; news [states, n_news]; state [n]: the row of `news` each row sees (None: its own
        number).  masks: 0/1 per unit of both layers instead of drawn dropout.
        """
        first_keep, second_keep = (None, None) if masks is None else masks
        half = self.news(news, start=self.tech.bias)  # with the bias, as the plan keeps it
        if state is None:
            state = torch.arange(len(tech), device=tech.device)
        return self.read(self.tech(tech, start=half, state=state, keep=first_keep), second_keep)

    def read(self, hidden: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and clamped log variance of what the first layer gave."""
        mean, log_variance = self.heads(self.second(hidden, keep=keep)).unbind(-1)
        return mean, log_variance.clamp(LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)

    def layers(self) -> dict[str, BICEPLayer]:
        """Return the layers by name."""
        return {"tech": self.tech, "news": self.news, "second": self.second, "heads": self.heads}

    def weights(self) -> Weights:
        """Return the parameters as the plan takes them.  Raises ValueError for another drop probability."""
        if self.p != DROP_PROBABILITY:
            msg = f"the plan drops with probability {DROP_PROBABILITY}, this net with {self.p}"
            raise ValueError(msg)
        biases = [layer.bias for layer in (self.tech, self.second, self.heads)]
        bias_one, bias_two, bias_heads = (bias for bias in biases if bias is not None)
        heads = self.heads.masked_weight()
        tensors = (
            self.tech.masked_weight(),
            self.news.masked_weight(),
            bias_one,
            self.second.masked_weight(),
            bias_two,
            heads[0],
            heads[1],
            bias_heads,
        )
        return Weights(*(np.array(tensor.detach().numpy(), np.float32) for tensor in tensors))


def gaussian_loss(mean: Tensor, log_variance: Tensor, label: Tensor, beta: float) -> Tensor:
    """Return the mean Gaussian negative log likelihood, each row weighted by its variance^beta.

    beta = 0 is the plain likelihood, 1 the gradient of a squared error; between, rows with a large
    predicted variance keep their say (Seitzer et al. 2022).
    """
    error = (label - mean).square()
    loss = 0.5 * (log_variance + error * torch.exp(-log_variance))
    return (loss * torch.exp(beta * log_variance.detach())).mean()


def direction_loss(mean: Tensor, log_variance: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross entropy of the label's sign; rows whose label is 0 have no say."""
    logit = _LOGIT_PER_SIGMA * mean * torch.exp(-0.5 * log_variance.detach())
    sign = torch.sign(label)
    return (fn.softplus(-sign * logit) * sign.abs()).mean()
