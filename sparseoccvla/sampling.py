"""Read feature maps where 3-D points fall into pictures: one view a point, 4-D grid_sample only.

The views of a camera set are stacked along the height with one empty row above and below each, so
that a bilinear sample never mixes two cameras and one call reads all of them. TensorRT has no 5-D
GridSample; this form is equal to it (tests/unit/test_sampling.py) and exports as standard operators.

Dimension legend:
    B batch    T frames    N cameras    K points    C channels    H W of a feature map
    X whatever was folded into the batch axis
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_DEPTH_M = 1e-5


class Projection(NamedTuple):
    """Where each point is read: in the first camera that sees it, else in camera 0, outside or not."""

    u: Tensor  # (B, T, K) 0..1 across the picture
    v: Tensor  # (B, T, K) 0..1 down the picture
    view: Tensor  # (B, T, K) camera, a whole number as float
    seen: Tensor  # (B, T, K) 1 where a valid camera sees the point, else 0
    valid: Tensor  # (B, T, K) 1 where that camera takes part, seeing the point or not, else 0
    depth_m: Tensor  # (B, T, K) along that camera's axis


def stack_views(level: Tensor) -> Tensor:
    """Maps (B, N, C, H, W) as one map (B, C, N * (H + 2), W) with an empty row around each view."""
    batch, cameras, channels, height, width = level.shape
    padded = F.pad(level.float(), (0, 0, 1, 1))  # (B, N, C, H+2, W)
    return padded.transpose(1, 2).reshape(batch, channels, cameras * (height + 2), width)


def unstack_views(stacked: Tensor, cameras: int) -> Tensor:
    """Maps (B, N, C, H, W) of a stacked map (B, C, N * (H + 2), W)."""
    batch, channels, rows, width = stacked.shape
    views = stacked.view(batch, channels, cameras, rows // cameras, width)
    return views[:, :, :, 1:-1].transpose(1, 2)


def project(
    points_m: Tensor, image_from_base: Tensor, valid: Tensor, image_size_px: tuple[int, int]
) -> Projection:
    """Project points (B, K, 3) into all pictures and pick one view for each point and frame.

    Args:
        points_m: in base_link at t0.
        image_from_base: (B, T, N, 4, 4) to (u*d, v*d, d, 1) in pixels.
        valid: (B, T, N) 1 for a camera that takes part, 0 for a masked one.
        image_size_px: (height, width) of those pixels.
    """
    height, width = image_size_px
    # Pixel coordinates need more than bf16, whatever is used around this.
    with torch.autocast(points_m.device.type, enabled=False):
        rotation, translation = image_from_base[..., :3, :3].float(), image_from_base[..., :3, 3:].float()
        points = points_m.float().transpose(1, 2)[:, None, None]  # (B, 1, 1, 3, K)
        x, y, depth = (rotation @ points + translation).unbind(dim=3)  # 3 x (B, T, N, K)
        safe = depth.clamp(min=_LEAST_DEPTH_M)
        u, v = x / safe / width, y / safe / height
        inside = (depth > _LEAST_DEPTH_M) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
        inside = inside.float() * valid.float()[..., None]
        # Every camera has its own rank, so that the maximum is one camera on every backend: first the
        # seeing ones, whose rank is above 1, among equals the first. The rank tells the camera again,
        # as an argmax would, which takes several times as long on a CPU.
        cameras = image_from_base.shape[2]
        order = torch.arange(cameras, 0, -1, device=depth.device).float()[:, None] / (cameras + 1)
        best = (inside + order).amax(dim=2)  # (B, T, K)
        seen = (best >= 1).float()
        view = (cameras - (best - seen) * (cameras + 1)).round()
        index = view.long()
        return Projection(
            u.gather(2, index[:, :, None]).squeeze(2),
            v.gather(2, index[:, :, None]).squeeze(2),
            view,
            seen,
            valid.float().gather(2, index),
            depth.gather(2, index[:, :, None]).squeeze(2),
        )


def sample(stacked: Tensor, u: Tensor, v: Tensor, view: Tensor, cameras: int) -> Tensor:
    """Bilinear samples (X, C, A, D) of stacked maps (X, C, N * (H + 2), W) at (X, A, D).

    Corners are aligned (u = 1 is the center of the last cell); outside a view the map is zero, with
    the half-way values of bilinear interpolation within one cell of the border.
    """
    rows, width = stacked.shape[-2:]
    height = rows // cameras - 2
    column = (u * (width - 1)).clamp(-1, width)
    row = (v * (height - 1)).clamp(-1, height) + 1 + view * (height + 2)
    grid = torch.stack([column * (2 / (width - 1)) - 1, row * (2 / (rows - 1)) - 1], dim=-1)
    return F.grid_sample(stacked, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
