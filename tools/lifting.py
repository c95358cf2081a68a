"""What limits occupancy: what the 2-D head sees, how far it says it is, or what is made of it.

    python -m tools.lifting --dataroot D [--model tiny] [--keyframes 24]      docs/results/lifting.json

Cells of the pictures are put straight to voxels, with their true class and depth and with what the model's
2-D head says; and the encoder's whole decoder is run on both. A decoder that has less than its own cells
throws something away; a decoder that gains nothing from the truth does not use what it is told.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import FLAT_CLASSES, FREE_CLASS, NUM_CLASSES, OCC3D_GRID
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.encoder import Auxiliary, Encoder
from sparseoccvla.geometry import inverse, transform
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.runtime.torch_backend import encoder_network, open_model
from sparseoccvla.training.batches import SceneBatch, SceneLoader
from sparseoccvla.training.occupancy_check import OBJECT_CLASSES, ScoredPoints, spread, voxel_labels

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "lifting.json"
SURE = 12.0  # logit of a class that is given


class Told(nn.Module):
    """A 2-D head that is told the truth about class or depth."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.truth: SceneBatch | None = None
        self.classes = self.depth = False

    def forward(self, *given: Tensor) -> Auxiliary:
        said: Auxiliary = self.head(*given)
        assert self.truth is not None
        labels, depth_m = self.truth.pixel_classes.long(), self.truth.pixel_depth_m
        logits, log_depth = said
        if self.depth:
            log_depth = torch.where(depth_m > 0, depth_m.clamp(min=0.1).log(), log_depth)
        if self.classes:
            sure = SURE * nn.functional.one_hot(labels.clamp(max=FREE_CLASS), NUM_CLASSES + 1).movedim(-1, 2)
            logits = torch.where((labels <= FREE_CLASS)[:, :, None], sure.float(), logits)
        return Auxiliary(logits, log_depth)


@dataclass(frozen=True)
class Keyframe:
    """One validation keyframe."""

    index: int
    truth: SceneBatch
    said: Auxiliary


def lifted(
    frame: Keyframe, cache: SampleCache, points: int, classes: bool, depth: bool, noise: float
) -> NDArray[np.uint8]:
    """Labels (200, 200, 16) of cells put to voxels, `points` x `points` in each.

    Args:
        frame: whose pictures.
        cache: of the split.
        points: across and down a cell.
        classes: whether its class is the true one.
        depth: likewise.
        noise: standard deviation of the logarithm of depth, drawn for each cell.
    """
    truth, cells = frame.truth, frame.said.log_depth[0].exp().double().numpy()
    labels = frame.said.logits[0].argmax(dim=1).numpy()
    if classes:
        labels = truth.pixel_classes[0].numpy()
    if depth:
        known = truth.pixel_depth_m[0].double().numpy()
        cells = np.where(known > 0, known, cells)
    if noise:
        cells = cells * np.exp(np.random.default_rng(frame.index).normal(0.0, noise, cells.shape))
    size_px = truth.inputs.images_rgb.shape[-2:]
    height, width = cells.shape[-2:]
    row, column = np.mgrid[:height, :width]
    found_m, found = [], []
    within = (np.arange(points) + 0.5) / points
    for camera, base_from_image in enumerate(truth.inputs.base_from_image[0].double().numpy()):
        something = labels[camera] < NUM_CLASSES
        for down, across in product(within, within):
            u, v = (column + across) * (size_px[1] / width), (row + down) * (size_px[0] / height)
            pixels = np.stack([u, v, np.ones_like(u)], axis=-1) * cells[camera][..., None]
            found_m.append(transform(base_from_image, pixels[something]))
            found.append(labels[camera][something])
    points_m, kinds = np.concatenate(found_m), np.concatenate(found)
    moved = transform(inverse(cache.truth(frame.index).base_from_label), points_m)
    voxel = np.floor((moved - OCC3D_GRID.min_m) / OCC3D_GRID.voxel_size_m).astype(int)
    inside = ((voxel >= 0) & (voxel < OCC3D_GRID.shape)).all(axis=1)
    # Where several meet, what stands is written last.
    order = np.argsort(~np.isin(kinds[inside], FLAT_CLASSES), kind="stable")
    made = np.full(OCC3D_GRID.shape, FREE_CLASS, np.uint8)
    made[tuple(voxel[inside][order].T)] = kinds[inside][order]
    return made


class Tally:
    """mIoU and the mean of object classes."""

    def __init__(self) -> None:
        self._metric = OccupancyMetric(Mask.CAMERA, Convention.SPARSEOCC)

    def add(self, made: NDArray[np.uint8], frame: Keyframe, cache: SampleCache) -> None:
        label = cache.occupancy(frame.index)
        assert label is not None
        self._metric.update(made, label.semantics, label.camera_mask)

    def row(self, what: str, **of: Any) -> dict[str, Any]:
        result = self._metric.result()
        objects = [result["per_class_iou"][i] for i in OBJECT_CLASSES]
        known = [value for value in objects if value is not None]
        row = {
            "what": what,
            **of,
            "mIoU": round(result["mIoU"] or 0.0, 4),
            "objects": round(float(np.mean(known)), 4),
        }
        print(json.dumps(row), file=sys.stderr)
        return row


def rows(encoder: Encoder, cache: SampleCache, loader: SceneLoader, count: int) -> Iterator[dict[str, Any]]:
    """Every way to make voxels of the same keyframes."""
    assert encoder.auxiliary is not None
    told = Told(encoder.auxiliary)
    encoder.auxiliary = told  # type: ignore[assignment]
    frames, decoded = [], {}
    ways = list(product((False, True), repeat=2))
    for index in spread(len(cache), count):
        told.truth = truth = loader.batch([(0, index)])
        label_from_base = inverse(cache.truth(index).base_from_label)
        for told.classes, told.depth in ways:
            inputs = truth.inputs
            with torch.no_grad():
                out = encoder(
                    inputs.images_rgb.float(), inputs.image_from_base, inputs.base_from_image, inputs.valid
                )
            assert out.auxiliary is not None
            if not (told.classes or told.depth):
                frames.append(Keyframe(index, truth, out.auxiliary))
            label = cache.occupancy(index)
            assert label is not None
            points_m, scores = out.points_m[-1][0].numpy(), encoder.scores(out.logits[-1].float())[0].numpy()
            scored = ScoredPoints(points_m, scores, label, label_from_base)
            decoded[index, told.classes, told.depth] = voxel_labels(scored, encoder.config.voxel_rule)
    for classes, depth in ways:
        tally = Tally()
        for frame in frames:
            tally.add(decoded[frame.index, classes, depth], frame, cache)
        yield tally.row("decoder", true_class=classes, true_depth=depth)
    for points, classes, depth, noise in (
        (2, False, False, 0.0), (2, True, False, 0.0), (2, False, True, 0.0), (2, True, True, 0.0),
        (1, True, True, 0.0), (2, True, True, 0.05), (2, True, True, 0.1), (2, True, True, 0.2),
    ):  # fmt: skip
        tally = Tally()
        for frame in frames:
            tally.add(lifted(frame, cache, points, classes, depth, noise), frame, cache)
        yield tally.row("cells", points=points, true_class=classes, true_depth=depth, noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataroot", type=Path, required=True, help="generated, with --pixel-stride")
    parser.add_argument("--model", default="tiny", help="with a 2-D head")
    parser.add_argument("--keyframes", type=int, default=24, help="of split val")
    parser.add_argument("--cache", type=Path, help="of samples; default: cache/ in the data set")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    source = ModelSource(model=arguments.model)
    manifest, config = open_model(source)
    encoder = encoder_network(source, manifest, config).eval()
    height, width = config.encoder.image_size_px
    folder = arguments.cache or arguments.dataroot / "cache"
    cache = open_cache(Tables(arguments.dataroot, None), "val", CacheConfig(height, width), folder / "val")
    stride_px = config.encoder.backbone.strides[0]
    loader = SceneLoader(cache, arguments.dataroot, config.encoder.frames, stride_px, False, None, 0)
    said = {
        "command": f"python -m tools.lifting --dataroot D --model M --keyframes {arguments.keyframes}",
        "model_id": manifest.model_id,
        "keyframes": arguments.keyframes,
        "rows": list(rows(encoder, cache, loader, arguments.keyframes)),
    }
    arguments.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
