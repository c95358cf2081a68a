"""Pictures to feature maps: a convolutional backbone and a feature pyramid (FPN).

Dimension legend:
    P pictures (batch x cameras)    H W height and width of a picture    C pyramid width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ImageNet statistics in 0..255, red green blue.
_MEAN_RGB = (123.675, 116.28, 103.53)
_STD_RGB = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class BackboneConfig:
    """`kind` "resnet50" is the paper's; "small" is a residual network for a CPU."""

    kind: str = "resnet50"
    stem_width: int = 24  # small only: width at stride 4
    widths: tuple[int, ...] = ()  # small only: one for each level, strides 8, 16, ...
    blocks: tuple[int, ...] = ()  # small only: residual blocks of each level
    pyramid_width: int = 256

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the picture to one cell of each level."""
        return (4, 8, 16, 32) if self.kind == "resnet50" else tuple(8 << i for i in range(len(self.widths)))


class Backbone(nn.Module):
    """Trunk and pyramid; levels from fine to coarse."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        match config.kind:
            case "resnet50":
                self.trunk: nn.Module = ResNet50()
                widths: tuple[int, ...] = (256, 512, 1024, 2048)
            case "small":
                self.trunk = SmallTrunk(config)
                widths = config.widths
            case _:
                raise ValueError(f"BackboneConfig.kind is {config.kind!r}, wanted resnet50 or small")
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.pyramid_width, 1) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Conv2d(config.pyramid_width, config.pyramid_width, 3, padding=1) for _ in widths
        )
        self.register_buffer("mean", torch.tensor(_MEAN_RGB).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD_RGB).view(3, 1, 1), persistent=False)

    def forward(self, images_rgb: Tensor) -> list[Tensor]:
        """Levels (P, C, H / stride, W / stride) of pictures (P, 3, H, W) in 0..255."""
        x = (images_rgb - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        maps = [lateral(level) for lateral, level in zip(self.lateral, self.trunk(x), strict=True)]
        for fine in range(len(maps) - 2, -1, -1):
            size = maps[fine].shape[-2:]
            maps[fine] = maps[fine] + F.interpolate(maps[fine + 1], size=size, mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, maps, strict=True)]


class ResNet50(nn.Module):
    """timm's ResNet-50 (stride on the 3x3 convolution) with batch statistics always frozen.

    OPUS and nearly all detectors freeze them: six pictures a process are too few to estimate from,
    and several processes stay equal to one.
    """

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.net = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.net(x)
        return levels

    def train(self, mode: bool = True) -> ResNet50:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class SmallTrunk(nn.Module):
    """Patch-like stem of stride 4, then residual levels at strides 8, 16, ..."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.stem = _Convolution(3, config.stem_width, kernel=5, stride=4)
        width, levels = config.stem_width, []
        for out, blocks in zip(config.widths, config.blocks, strict=True):
            down = _Convolution(width, out, kernel=3, stride=2)
            levels.append(nn.Sequential(down, *(_Block(out) for _ in range(blocks))))
            width = out
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class _Convolution(nn.Sequential):
    """Convolution, group norm, ReLU. Group norm: the same with any batch and any number of processes."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, bias=False),
            nn.GroupNorm(8, width_out),
            nn.ReLU(inplace=True),
        )


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _Convolution(width, width, kernel=3, stride=1)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
