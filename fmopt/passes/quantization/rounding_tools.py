"""Tools that round weights, in a process of their own: python -m fmopt.passes.quantization.rounding_tools FOLDER

They change classes of transformers on import, set up logs and leave folders where they run; nothing of that is left here.
FOLDER has request.json, the network and rows.safetensors; what the tool made of them goes into rounded.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.surgery.projections import replace_module, weight_of
from fmopt.passes.quantization.rounded_linears import Rounded, layer_linears

REQUEST, NETWORK, ROWS, ROUNDED = "request.json", "network", "rows.safetensors", "rounded.safetensors"


def auto_round(net: Any, rows: torch.Tensor, asked: Mapping[str, Any]) -> dict[str, Rounded]:
    """AutoRound: which way each weight is rounded, and how far each block reaches, learned by the sign of the gradient, one
    layer of the network after the other (SignRound, Cheng et al., 2023)."""
    import transformers
    from auto_round import AutoRound

    tokenizer = transformers.AutoTokenizer.from_pretrained(NETWORK, local_files_only=True, trust_remote_code=False)
    items = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(asked["together"])]
    tool = AutoRound(
        net, tokenizer, bits=asked["bits"], group_size=asked["block"], sym=asked["symmetric"], iters=asked["iterations"],
        nsamples=len(rows), seqlen=rows.shape[1], batch_size=min(asked["together"], len(rows)), dataset=items, seed=asked["seed"],
        device_map="cpu", enable_torch_compile=False, amp=False,
    )  # fmt: skip
    tool.quantize()
    made = {}
    for name, module in layer_linears(net).items():
        if getattr(module, "scale", None) is None:  # left out, which it does not say
            continue
        weight = weight_of(module).float()
        scales = module.scale.float().reshape(len(weight), -1)
        zeros = module.zp if torch.is_tensor(module.zp) else torch.full_like(scales, float(module.zp))
        zeros = zeros.float().reshape(scales.shape)
        integers = (weight.view(*scales.shape, -1) / scales[..., None]).round() + zeros[..., None]
        parts = (integers.flatten(1).to(torch.uint8), scales, None if asked["symmetric"] else zeros.to(torch.uint8))
        made[name] = Rounded(*parts, asked["bits"])
    return made


def gptq(net: Any, rows: torch.Tensor, asked: Mapping[str, Any]) -> dict[str, Rounded]:
    """GPTQ as neural-compressor has it: weights are rounded one column after the other, and those that are left make up for what
    was lost, as far as the inputs of the layer tell (Frantar et al., 2022)."""
    from neural_compressor.torch.quantization import GPTQConfig, convert, prepare

    for name, module in layer_linears(net).items():
        if isinstance(module, Conv1D):  # it would be passed over in silence
            replace_module(net, name, _linear_of(module))
    config = GPTQConfig(bits=asked["bits"], group_size=asked["block"], use_sym=asked["symmetric"], act_order=False)
    net = prepare(net, config)
    for row in rows.split(1):
        net(input_ids=row, attention_mask=torch.ones_like(row))
    made = {}
    for name, module in convert(net).named_modules():
        if not hasattr(module, "unpack"):
            continue
        found = module.unpack()
        zeros = None if asked["symmetric"] else found["zp"].to(torch.uint8)  # symmetric: the middle, in all of them
        made[name] = Rounded(found["int_weight"].to(torch.uint8), found["scales"].float(), zeros, asked["bits"])
    return made


TOOLS: dict[str, Callable[[Any, torch.Tensor, Mapping[str, Any]], dict[str, Rounded]]] = {
    "autoround": auto_round,
    "gptq": gptq,
}


def _linear_of(module: Any) -> nn.Linear:
    weight = weight_of(module)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
    made.weight = nn.Parameter(weight.contiguous())
    made.bias = module.bias
    return made


def main(folder: Path) -> None:
    """Do what is asked for, in the folder, which becomes the working directory."""
    os.chdir(folder)
    asked = json.loads(Path(REQUEST).read_text())
    torch.set_num_threads(asked["threads"])
    net: Any = checkpoint.load(checkpoint.inspect(resolve(NETWORK), task=asked["task"])).net
    rows = load_file(ROWS)["rows"]
    tensors: dict[str, torch.Tensor] = {}
    for name, one in TOOLS[asked["tool"]](net, rows, asked).items():
        tensors |= {f"{name}:integers": one.integers.contiguous(), f"{name}:scales": one.scales.contiguous()}
        if one.zeros is not None:
            tensors[f"{name}:zeros"] = one.zeros.contiguous()
    save_file(tensors, ROUNDED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
