"""Linear modules seen alike, whichever way round they keep their weights: torch's Linear [out, in], GPT-2's Conv1D [in, out]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fmopt.core.errors import PassError


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the network has `name`."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


def projection(net: nn.Module, name: str) -> Any:
    """The linear module `name`; PassError when it is of another kind."""
    module = net.get_submodule(name)
    if not isinstance(module, nn.Linear | Conv1D):
        raise PassError(f"{name} is a {type(module).__name__}, not a Linear; cut before quantizing")
    return module


def weight_of(module: Any) -> torch.Tensor:
    """Its weights as [out, in], without gradient; they share memory with the module's."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def as_kept(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] the way round that the module keeps its own."""
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def put_weight(module: Any, weight: torch.Tensor) -> None:
    """New weights [out, in], copied; the module's widths follow."""
    module.weight = nn.Parameter(as_kept(module, weight.detach()).clone())
    if isinstance(module, Conv1D):
        module.nf, module.nx = weight.shape
    else:
        module.out_features, module.in_features = weight.shape


def keep_rows(module: Any, rows: Sequence[int]) -> None:
    """Keep only these output features."""
    index = torch.tensor(rows, device=module.weight.device)
    put_weight(module, weight_of(module)[index])
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[index].clone())


def keep_columns(module: Any, columns: Sequence[int]) -> None:
    """Keep only these input features."""
    index = torch.tensor(columns, device=module.weight.device)
    put_weight(module, weight_of(module)[:, index])
