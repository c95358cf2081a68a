"""One stage's weights in one safetensors file. What is stored is decided here, for saving and loading.

A language model that came from its own folder is not stored again: only its LoRA adapters are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.manifest import ModelError


def stored_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a stage by name; tied ones once, foreign ones not at all."""
    shared = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in net.named_parameters()}
    tensors |= {name: tensor for name, tensor in net.state_dict().items() if name not in shared}
    if isinstance(net, Reasoner) and net.config.language.path:
        tensors = {n: t for n, t in tensors.items() if not n.startswith("language.") or "lora_" in n}
    return tensors


def save_weights(net: nn.Module, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a stage's weights as `dtype`; whole numbers stay what they are."""
    stored = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().cpu()
        for name, tensor in stored_tensors(net).items()
    }
    save_file(stored, path)


def load_weights(net: nn.Module, path: Path) -> None:
    """Copy a file's weights into a stage; every name and shape must match.

    Raises:
        ModelError: not a safetensors file, or names or shapes of another network.
    """
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}; fetch it again") from error
    wanted = stored_tensors(net)
    missing, unknown = sorted(set(wanted) - set(loaded)), sorted(set(loaded) - set(wanted))
    shapes = [
        f"{name} {tuple(loaded[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in loaded and loaded[name].shape != wanted[name].shape
    ]
    if missing or unknown or shapes:
        raise ModelError(
            f"{path} does not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(loaded[name])
