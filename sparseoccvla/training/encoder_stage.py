"""Stage `encoder`: occupancy, with deep supervision and the 2-D head from the first step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseoccvla.encoder import Decoded, DecoderLayer, Encoder
from sparseoccvla.training.batches import NetworkInputs, SceneBatch
from sparseoccvla.training.config import EncoderTraining
from sparseoccvla.training.distillation import Distillation, DistillationConfig, Teacher
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term, auxiliary_terms, occupancy_terms
from sparseoccvla.training.occupancy_check import OccupancyCheck


class EncoderTask(Task):
    """Loss terms of the encoder.

    Args:
        encoder: to train.
        config: of the stage.
        seed: of the run.
        check: validation.
    """

    def __init__(self, encoder: Encoder, config: EncoderTraining, seed: int, check: OccupancyCheck) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.weights = encoder_weights(config, len(encoder.config.points))
        self.pretrained_prefixes = (
            ("encoder.backbone.trunk.net",) if encoder.config.backbone.kind == "resnet50" else ()
        )
        self._seed = seed
        self._check = check
        self.teacher = Teacher(config.teacher) if config.teacher else None
        self.distillation = (
            Distillation(DistillationConfig(encoder.config.width, self.teacher.width, config.distillation))
            if self.teacher
            else None
        )

    def forward(self, batch: SceneBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        columns = some_columns(
            self.encoder.config.points[-1], self.config.last_layer_points, self._seed, step
        )
        decoded = encode(self.encoder, batch.inputs, columns)
        terms = encoder_terms(decoded, batch, self.config, columns)
        if self.teacher is not None and self.distillation is not None:
            inputs = batch.inputs
            terms["distillation"] = self.distillation(
                decoded.features,
                decoded.points_m[-1],
                self.teacher(inputs.images_rgb[:, 0].float()),
                inputs.image_from_base[:, 0],
                inputs.valid[:, 0],
                self.encoder.config.image_size_px,
            )
        return terms

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return self._check(self.encoder)


@torch.no_grad()
def start_at(encoder: Encoder, voxels_m: Tensor, spread_m: float, seed: int) -> None:
    """Start the learned queries on clusters of voxels, and the points of every query apart from each other.

    Points that start anywhere in the grid first have to find the ground, and those that start as one
    first have to part; both take hundreds of steps.

    Args:
        encoder: before training.
        voxels_m: (n, 3) visible voxels of training scenes.
        spread_m: standard deviation of the points around their query, z a quarter; 0 leaves them together.
        seed: of clusters and spread.
    """
    from sklearn.cluster import KMeans

    learned = len(encoder.initial_points)
    clusters = KMeans(learned, n_init=1, random_state=seed).fit(voxels_m.numpy()).cluster_centers_
    centers_m = torch.from_numpy(clusters).float()
    encoder.initial_points.copy_((centers_m - encoder.low_m) / encoder.extent_m)
    generator = torch.Generator().manual_seed(seed)
    for layer in encoder.layers:
        assert isinstance(layer, DecoderLayer)
        last = layer.offsets[-1]
        assert isinstance(last, nn.Linear)
        away_m = torch.randn(layer.points_out, 3, generator=generator) * spread_m
        last.bias.add_((away_m * torch.tensor([1.0, 1.0, 0.25]) / layer.offset_scale).flatten())


def encoder_weights(config: EncoderTraining, layers: int) -> dict[str, float]:
    """Weights of the terms of `encoder_terms`."""
    weights = {
        "points_initial": config.initial_weight,
        "auxiliary": config.auxiliary_weight,
        "distillation": config.distillation_weight,
    }
    for layer in range(layers - 1):
        weights |= {
            f"points_{layer}": config.earlier_layer_weight,
            f"classes_{layer}": config.earlier_layer_weight,
        }
    return weights


def some_columns(points: int, many: int, seed: int, step: int) -> Tensor | None:
    """Which of each query's points take part in a step, equal on all processes; None for all."""
    if not 0 < many < points:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randperm(points, generator=generator)[:many].sort().values


def encode(encoder: Encoder, inputs: NetworkInputs, columns: Tensor | None = None) -> Decoded:
    """The encoder on a batch of camera sets."""
    batch, frames = inputs.images_rgb.shape[:2]
    levels = encoder.extract(inputs.images_rgb.flatten(0, 1).float())
    return encoder.decode(
        [level.unflatten(0, (batch, frames)) for level in levels],
        inputs.image_from_base,
        inputs.base_from_image,
        inputs.valid,
        columns,
    )


def encoder_terms(
    decoded: Decoded, batch: SceneBatch, config: EncoderTraining, columns: Tensor | None
) -> dict[str, Term]:
    """Occupancy and 2-D terms of a batch, in fp32 whatever is used around."""
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    with torch.autocast(batch.inputs.valid.device.type, enabled=False):
        decoded = decoded._replace(logits=tuple(logits.float() for logits in decoded.logits))
        terms = occupancy_terms(decoded, batch.targets, config.losses, generators, columns)
        if decoded.auxiliary is not None:
            terms |= auxiliary_terms(
                decoded.auxiliary, batch.pixel_classes, batch.pixel_depth_m, config.losses
            )
    return terms
