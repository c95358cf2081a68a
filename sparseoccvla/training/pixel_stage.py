"""First part of stage `encoder`: the backbone learns what is in a picture and how far, before any query does.

A decoder can't lift what the 2-D head does not see, and a step without the decoder costs a tenth per picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseoccvla.contracts import NUM_CLASSES
from sparseoccvla.encoder import Auxiliary, Encoder
from sparseoccvla.errors import InputError
from sparseoccvla.sampling import unstack_views
from sparseoccvla.training.batches import SceneBatch, SceneLoader
from sparseoccvla.training.config import EncoderTraining
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term, auxiliary_terms
from sparseoccvla.training.occupancy_check import OBJECT_CLASSES, spread

_BATCH = 4


@dataclass(frozen=True)
class PixelCheck:
    """Held-out samples that the 2-D head is tried on, as it drives."""

    loader: SceneLoader  # without augmentation
    count: int  # of its samples
    samples: int  # how many at most
    precision: torch.dtype


class PixelTask(Task):
    """Loss terms of the 2-D head.

    Args:
        encoder: whose backbone and 2-D head are trained.
        config: of the stage.
        check: validation.
    """

    def __init__(self, encoder: Encoder, config: EncoderTraining, check: PixelCheck) -> None:
        super().__init__()
        if encoder.auxiliary is None:
            raise InputError(
                f"encoder.pixels.share is {config.pixels.share:g}, but the sizes have no 2-D head to train; "
                "set it to 0, or auxiliary_width of the encoder's sizes to its width, e.g. 64"
            )
        self.backbone, self.head = encoder.backbone, encoder.auxiliary
        self.config, self.weights = config, {}
        self._extract, self._cameras, self._check = encoder.extract, encoder.config.cameras, check

    def forward(self, batch: SceneBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        said, others = self._said(batch)
        with torch.autocast(said.logits.device.type, enabled=False):
            terms = auxiliary_terms(said, batch.pixel_classes, batch.pixel_depth_m, self.config.losses)
            # Coarser levels teach nothing here, but several processes want a gradient for each parameter.
            idle = torch.stack([level.float().sum() for level in others]).sum() * 0.0 if others else 0.0
            total, divisor = terms["auxiliary_classes"]
            return terms | {"auxiliary_classes": Term(total + idle, divisor)}

    def _said(self, batch: SceneBatch) -> tuple[Auxiliary, list[Tensor]]:
        """What the 2-D head says, and the levels that it does not read."""
        inputs = batch.inputs
        finest, *others = self._extract(inputs.images_rgb[:, 0].float())
        said: Auxiliary = self.head(unstack_views(finest, self._cameras), inputs.base_from_image)
        return said, others

    def validate(self) -> dict[str, float]:
        """See `Task`: IoU of cells and median error of log depth, on the mean of classes that stand."""
        check = self._check
        device = next(self.parameters()).device
        both, either = torch.zeros(NUM_CLASSES), torch.zeros(NUM_CLASSES)
        gaps: list[list[Tensor]] = [[] for _ in range(NUM_CLASSES)]
        indices = spread(check.count, check.samples)
        for start in range(0, len(indices), _BATCH):
            batch = check.loader.batch([(0, index) for index in indices[start : start + _BATCH]]).to(device)
            with torch.autocast(device.type, check.precision, check.precision != torch.float32):
                said, _ = self._said(batch)
            found, labels = said.logits.argmax(dim=2), batch.pixel_classes
            gap = (said.log_depth.detach() - batch.pixel_depth_m.clamp(min=0.1).log()).abs()
            for label in OBJECT_CLASSES:
                true, claimed = labels == label, (found == label) & (labels <= NUM_CLASSES)
                both[label] += int((true & claimed).sum())
                either[label] += int((true | claimed).sum())
                gaps[label].append(gap[true & (batch.pixel_depth_m > 0)].cpu())
        medians = [torch.cat(gaps[label]).median() for label in OBJECT_CLASSES if len(torch.cat(gaps[label]))]
        seen = [label for label in OBJECT_CLASSES if either[label]]
        return {
            "pixel_mIoU": float((both[seen] / either[seen]).mean()) if seen else 0.0,
            "log_depth_error": float(torch.stack(medians).mean()) if medians else 0.0,
        }
