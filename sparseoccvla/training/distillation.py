"""Teach the queries what a frozen CLIP sees where their points fall into the pictures.

The paper's variant normalizes both sides (a LayerNorm each, cosine distance); the raw one compares
features as they are, whose scale then leaks into the language model's input. The branch is not part
of a model: it is thrown away after training.

Dimension legend:
    B batch    N cameras    Q queries    R points per query    C query width    E teacher width
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseoccvla.errors import InputError
from sparseoccvla.runtime.manifest import sha256_of
from sparseoccvla.sampling import project, sample, stack_views
from sparseoccvla.training.losses import Term

TEACHER_CARD = "card.json"  # beside the weights of a teacher that stage `teacher` trained

# CLIP's own statistics, in 0..255.
_MEAN_RGB = (122.771, 116.746, 104.094)
_STD_RGB = (68.501, 66.632, 70.323)


@dataclass(frozen=True)
class DistillationConfig:
    """`variant` is "normalized" (the paper's) or "raw"."""

    query_width: int = 256
    teacher_width: int = 768
    variant: str = "normalized"


def clip_pixels(images_rgb: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) in 0..255 as CLIP takes them."""
    mean, std = (images_rgb.new_tensor(of).view(3, 1, 1) for of in (_MEAN_RGB, _STD_RGB))
    return (images_rgb - mean) / std


def teacher_card(path: str) -> dict[str, Any]:
    """Which CLIP lies at `path`: its name, the hash of its weights, and what it says of itself.

    Of a hub name there is the name alone; the folder's place stays out, as it is another one elsewhere.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {"name": path}
    card: dict[str, Any] = {"name": folder.name}
    weights, own = folder / "model.safetensors", folder / TEACHER_CARD
    if weights.exists():
        card["sha256"] = sha256_of(weights)
    if own.exists():
        card["card"] = json.loads(own.read_text())
    return card


class Teacher(nn.Module):
    """The vision side of any transformers CLIP: a frozen map of patch features."""

    def __init__(self, path: str | Path) -> None:
        """Load from a folder or a hub name.

        Raises:
            InputError: no CLIP vision model there.
        """
        super().__init__()
        from transformers import CLIPVisionModel
        from transformers.utils import logging

        said = logging.get_verbosity()
        logging.set_verbosity_error()  # that a whole CLIP has words, too, is no news
        try:
            loaded: Any = CLIPVisionModel.from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:  # the last: weights of other shapes
            raise InputError(f"no CLIP vision model could be loaded from {str(path)!r}: {error}") from error
        finally:
            logging.set_verbosity(said)
        clip, report = loaded
        self.clip: CLIPVisionModel = clip
        if report["missing_keys"]:
            raise InputError(
                f"no CLIP vision model could be loaded from {str(path)!r}: its weights lack "
                f"{len(report['missing_keys'])} of CLIP's, e.g. {min(report['missing_keys'])}"
            )
        self.requires_grad_(False).eval()
        patch_px = self.clip.config.patch_size
        assert isinstance(patch_px, int), f"CLIP patches are {patch_px}, wanted squares"
        self.patch_px = patch_px
        self.width = int(self.clip.config.hidden_size)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images_rgb: Tensor) -> Tensor:
        """Features (B, N, E, H / patch, W / patch) of pictures (B, N, 3, H, W) in 0..255."""
        batch, cameras, _, height, width = images_rgb.shape
        rows, columns = round(height / self.patch_px), round(width / self.patch_px)
        pictures = F.interpolate(
            images_rgb.flatten(0, 1), (rows * self.patch_px, columns * self.patch_px), mode="bilinear"
        )
        hidden = self.clip(clip_pixels(pictures), interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        return hidden.transpose(1, 2).unflatten(2, (rows, columns)).unflatten(0, (batch, cameras))


class Distillation(nn.Module):
    """Student features against the teacher's at the same places."""

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__()
        if config.variant not in ("normalized", "raw"):
            raise ValueError(f"DistillationConfig.variant is {config.variant!r}, wanted normalized or raw")
        self.config = config
        self.student = nn.Linear(config.query_width, config.teacher_width)
        self.student_norm = nn.LayerNorm(config.teacher_width)
        # Without learned scale: one that is learned could make every teacher feature the same.
        self.teacher_norm = nn.LayerNorm(config.teacher_width, elementwise_affine=False)
        if config.variant == "raw":
            self.student_norm.requires_grad_(False)

    def forward(
        self,
        features: Tensor,
        points_m: Tensor,
        teacher_map: Tensor,
        image_from_base: Tensor,
        valid: Tensor,
        image_size_px: tuple[int, int],
    ) -> Term:
        """The distillation loss over all queries that a camera sees.

        Args:
            features: Q_L (B, Q, C).
            points_m: P_L (B, Q, R, 3); the teacher's features are averaged over the seen points.
            teacher_map: (B, N, E, h, w) of the newest pictures.
            image_from_base: (B, N, 4, 4).
            valid: (B, N).
            image_size_px: (height, width) of the pixels of `image_from_base`.
        """
        wanted, seen = self._at_points(points_m, teacher_map, image_from_base, valid, image_size_px)
        said = self.student(features)
        if self.config.variant == "normalized":
            distance = 1 - F.cosine_similarity(self.student_norm(said), self.teacher_norm(wanted), dim=-1)
        else:
            distance = (said - wanted).square().mean(dim=-1)
        return Term((distance * seen).sum(), seen.sum())

    @staticmethod
    def _at_points(
        points_m: Tensor,
        teacher_map: Tensor,
        image_from_base: Tensor,
        valid: Tensor,
        image_size_px: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Teacher features (B, Q, E) and 1 for each query (B, Q) that is seen at all."""
        batch, queries, points, _ = points_m.shape
        where = project(
            points_m.detach().flatten(1, 2), image_from_base[:, None], valid[:, None], image_size_px
        )
        u, v, view, seen, *_ = (part.view(batch, queries, points) for part in where)
        read = sample(stack_views(teacher_map), u, v, view, teacher_map.shape[1])  # (B, E, Q, R)
        count = seen.sum(dim=-1)  # (B, Q)
        mean = (read * seen[:, None]).sum(dim=-1) / count.clamp(min=1)[:, None]  # (B, E, Q)
        return mean.transpose(1, 2), (count > 0).to(mean.dtype)
