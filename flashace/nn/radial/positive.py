"""A positive number in, the parameter that a softplus makes it of out."""

import torch
from torch import Tensor, nn


def positive_parameter(value: Tensor, trainable: bool) -> nn.Parameter:
    """A parameter whose softplus is `value`."""
    raw = value.double() + torch.log(-torch.expm1(-value.double()))
    return nn.Parameter(raw.to(value.dtype), requires_grad=trainable)
