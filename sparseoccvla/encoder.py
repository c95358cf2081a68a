"""Pictures to sparse occupancy queries: OPUS's coarse-to-fine decoder.

Each query is a feature with a few 3-D points. A layer samples the pictures around the points, mixes
what it read into the feature, lets queries talk with a penalty on their distance, and replaces the
points by more of them. Order of a layer: sampling, adaptive mixing, spatial-aware self-attention,
feed-forward. The defaults are OPUS-T's sizes, whose public weights fit (`import_weights.py`); the
switches at the end of the config are what a small network needs to learn fast, and quirks of the
public weights.

Source: Wang et al., OPUS (NeurIPS 2024); SparseOccVLA (arXiv 2601.06474) starts from it.

Dimension legend:
    B batch    T frames    N cameras    Q queries    R points per query    C query width
    G groups   P sampling points    L levels    K classes (17, or 18 with free)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseoccvla.backbone import Backbone, BackboneConfig
from sparseoccvla.contracts import FLAT_CLASSES, NUM_CLASSES, OCC3D_GRID
from sparseoccvla.sampling import project, sample, stack_views, unstack_views
from sparseoccvla.voxels import VoxelRule

_NEAREST_GROUND_M, _FARTHEST_GROUND_M = 0.5, 60.0


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder; the defaults are OPUS-T's."""

    image_size_px: tuple[int, int] = (256, 704)  # height, width
    cameras: int = 6
    frames: int = 8
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    queries: int = 600
    width: int = 256
    groups: int = 4
    heads: int = 8
    sampling_points: int = 4  # for each group and frame
    mixing_points: int = 32
    ffn_width: int = 512
    points: tuple[int, ...] = (1, 4, 16, 32, 64, 128)  # per query after each layer
    offset_scale: float = 0.5  # meters of one unit of the regression heads
    class_prior: float = 0.01  # what a class head says before training
    dropout: float = 0.1
    voxel_rule: VoxelRule = field(default_factory=VoxelRule)

    # What a small network needs to learn fast.
    free_class: bool = False  # softmax over 17 + free instead of 17 sigmoids
    least_spread_m: tuple[float, ...] = ()  # floor of the sampling spread of each layer; z a quarter
    auxiliary_width: int = 0  # 2-D semantics and depth on the finest level of the newest frame
    depth_by_contact: bool = False  # the 2-D head says the row where a thing meets the ground
    seeded_queries: int = 0  # of `queries`, started on what the auxiliary head lifts off the ground
    lifted_points: bool = False  # points of a seeded query's last layer start on cells of its square
    lifted_spread: float = 0.0  # along the ray of their cell: depth times exp(-spread) to exp(spread)
    lifted_reach_m: float = 0.0  # the farthest that an axis of these points moves; 0: without bound
    square: tuple[int, int] = (4, 4)  # rows and columns of picture cells that offer one seed
    point_class_width: int = 0  # class of each point from the picture where it falls
    surface_cue: bool = False  # and from what the 2-D head sees there, and how far before the point

    # Quirks that public OPUS weights were trained with.
    opus_level_weights: bool = False  # level weights of another group, chosen by the frame
    sample_unseen: bool = False  # a point that no camera sees is still read at camera 0's border
    repeat_history: bool = False  # a missing frame is the next newer one again, not masked

    def __post_init__(self) -> None:
        if self.width % self.groups or self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of {self.groups} groups and {self.heads} heads"
            )
        if self.backbone.pyramid_width != self.width:
            raise ValueError(
                f"backbone.pyramid_width is {self.backbone.pyramid_width}, wanted the width {self.width}"
            )
        if self.least_spread_m and len(self.least_spread_m) != len(self.points):
            raise ValueError(
                f"least_spread_m has {len(self.least_spread_m)} values for {len(self.points)} layers"
            )
        if self.seeded_queries and not self.auxiliary_width:
            raise ValueError("seeded_queries needs auxiliary_width: the seeds come from its depth")
        if self.lifted_points and (not self.seeded_queries or self.points[-1] % self.square_cells):
            raise ValueError(
                f"lifted_points needs seeded_queries and points in multiples of {self.square_cells}, "
                f"got {self.seeded_queries} and {self.points[-1]}"
            )
        if self.surface_cue and not (self.auxiliary_width and self.point_class_width):
            raise ValueError(
                "surface_cue needs auxiliary_width and point_class_width: it brings one to the other"
            )

    @property
    def square_cells(self) -> int:
        return self.square[0] * self.square[1]

    @property
    def levels(self) -> int:
        return len(self.backbone.strides)

    @property
    def classes(self) -> int:
        return NUM_CLASSES + self.free_class


class Auxiliary(NamedTuple):
    """What the 2-D head says about the newest frame, at the finest level."""

    logits: Tensor  # (B, N, NUM_CLASSES + 1, H, W); the last is sky and beyond the grid
    log_depth: Tensor  # (B, N, H, W) of the optical axis, meters


class Decoded(NamedTuple):
    """Queries after the last layer, and what every layer said (for deep supervision)."""

    features: Tensor  # (B, Q, C)
    logits: tuple[Tensor, ...]  # a layer: (B, Q, R, K)
    points_m: tuple[Tensor, ...]  # a layer: (B, Q, R, 3) base_link at t0
    initial_points_m: Tensor  # (B, Q, 1, 3)
    auxiliary: Auxiliary | None


class LayerOutput(NamedTuple):
    features: Tensor  # (B, Q, C)
    logits: Tensor  # (B, Q, R, K)
    points: Tensor  # (B, Q, R, 3) normalized


class Scene(NamedTuple):
    """What the layers read: stacked maps, and how base_link falls into them."""

    levels: list[Tensor]  # L x (B, T, C, N * (H + 2), W), newest frame first
    image_from_base: Tensor  # (B, T, N, 4, 4)
    valid: Tensor  # (B, T, N)
    surface: Tensor | None  # stacked (B, NUM_CLASSES + 2, N * (H + 2), W), see `_surface`


class Encoder(nn.Module):
    """Backbone on one camera set (`extract`), decoder over several (`decode`)."""

    low_m: Tensor
    extent_m: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.initial_points = nn.Parameter(torch.rand(config.queries - config.seeded_queries, 3))
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(len(config.points)))
        self.auxiliary = AuxiliaryHead(config) if config.auxiliary_width else None
        self.seeds = Seeds(config) if config.seeded_queries else None
        low, high = torch.tensor(OCC3D_GRID.min_m), torch.tensor(OCC3D_GRID.max_m)
        self.register_buffer("low_m", low.float(), persistent=False)
        self.register_buffer("extent_m", (high - low).float(), persistent=False)

    def extract(self, images_rgb: Tensor) -> list[Tensor]:
        """Stacked levels (B, C, N * (H + 2), W) of pictures (B, N, 3, H, W) in 0..255."""
        batch, cameras = images_rgb.shape[:2]
        levels = self.backbone(images_rgb.flatten(0, 1))
        return [stack_views(level.unflatten(0, (batch, cameras))) for level in levels]

    def decode(
        self,
        levels: list[Tensor],
        image_from_base: Tensor,
        base_from_image: Tensor,
        valid: Tensor,
        last_columns: Tensor | None = None,
    ) -> Decoded:
        """Run the decoder.

        Args:
            levels: a stacked map (B, T, C, N * (H + 2), W) for each level, newest frame first.
            image_from_base: (B, T, N, 4, 4) base_link at t0 to pixels of each picture.
            base_from_image: (B, N, 4, 4) inverse for the newest frame; read where queries are seeded.
            valid: (B, T, N) 1 for a picture that takes part, 0 for a masked one.
            last_columns: training only: classify these of each query's R points of the last layer; a
                class head works point by point, and there are more points than a loss looks at.
        """
        config, batch = self.config, valid.shape[0]
        points = self.initial_points.expand(batch, -1, -1)  # (B, Q, 3)
        features = points.new_zeros(batch, len(self.initial_points), config.width)
        auxiliary = lifted_m = None
        if self.auxiliary is not None:
            newest = unstack_views(levels[0][:, 0], config.cameras)  # (B, N, C, H, W)
            auxiliary = self.auxiliary(newest, base_from_image)
            if self.seeds is not None:
                seeds_m, lifted_m, seed_features = self.seeds(newest, auxiliary, base_from_image, valid[:, 0])
                points = torch.cat([points, (seeds_m - self.low_m) / self.extent_m], dim=1)
                features = torch.cat([features, seed_features], dim=1)
        surface = _surface(auxiliary) if auxiliary is not None and config.surface_cue else None
        scene = Scene(levels, image_from_base, valid, surface)
        points = points[:, :, None]  # (B, Q, R=1, 3)
        initial_m = self._meters(points)
        logits, points_m = [], []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            features, layer_logits, points = layer(
                features,
                points,
                scene,
                self.low_m,
                self.extent_m,
                last_columns if last else None,
                lifted_m if last and config.lifted_points else None,
            )
            logits.append(layer_logits)
            points_m.append(self._meters(points))
            points = points.detach()
        return Decoded(features, tuple(logits), tuple(points_m), initial_m, auxiliary)

    def forward(
        self, images_rgb: Tensor, image_from_base: Tensor, base_from_image: Tensor, valid: Tensor
    ) -> Decoded:
        """`extract` and `decode` of pictures (B, T, N, 3, H, W); the rest as in `decode`."""
        batch, frames = images_rgb.shape[:2]
        levels = self.extract(images_rgb.flatten(0, 1))
        return self.decode(
            [level.unflatten(0, (batch, frames)) for level in levels], image_from_base, base_from_image, valid
        )

    def scores(self, logits: Tensor) -> Tensor:
        """Scores (..., 17) in [0, 1] of logits (..., K)."""
        if self.config.free_class:
            return logits.softmax(dim=-1)[..., :NUM_CLASSES]
        return logits.sigmoid()

    def _meters(self, points: Tensor) -> Tensor:
        return points * self.extent_m + self.low_m


class DecoderLayer(nn.Module):
    """Sampling, mixing, self-attention, feed-forward; then new points around the old center."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.points_in = (1, *config.points)[index]
        self.points_out = config.points[index]
        self.offset_scale = config.offset_scale
        self.lifted_reach_m = config.lifted_reach_m
        self.position = nn.Sequential(
            nn.Linear(3 * self.points_in, width), nn.LayerNorm(width), nn.ReLU(),
            nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(),
        )  # fmt: skip
        self.sampling = Sampling(config, index)
        self.mixing = AdaptiveMixing(config)
        self.attention = SpatialAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(config.ffn_width, width), nn.Dropout(config.dropout),
        )  # fmt: skip
        self.norm_mixing = nn.LayerNorm(width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.classes = (PointClasses if config.point_class_width else QueryClasses)(config, self.points_out)
        self.offsets = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 3 * self.points_out),
        )  # fmt: skip

    def forward(
        self,
        features: Tensor,
        points: Tensor,
        scene: Scene,
        low_m: Tensor,
        extent_m: Tensor,
        columns: Tensor | None = None,
        lifted_m: Tensor | None = None,
    ) -> LayerOutput:
        """One layer on features (B, Q, C) and normalized points (B, Q, Rin, 3).

        For `columns` see `Encoder.decode`; points of the last queries start on `lifted_m`
        (B, S, Rout, 3) instead of the old center.
        """
        features = features + self.position(points.flatten(2))
        points_m = points * extent_m + low_m
        center_m = points_m.mean(dim=2)  # (B, Q, 3)
        read = self.sampling(features, points_m, center_m, scene)  # (B, Q, G, T*P, C/G)
        features = self.norm_mixing(features + self.mixing(features, read))
        features = self.norm_attention(features + self.attention(features, center_m))
        features = self.norm_ffn(features + self.ffn(features))
        offsets_m = self.offset_scale * self.offsets(features).float()
        start_m = center_m[:, :, None]
        if lifted_m is not None:
            count = lifted_m.shape[1]
            learned = start_m[:, :-count].expand(-1, -1, self.points_out, -1)
            start_m = torch.cat([learned, lifted_m], dim=1)
            # Unbounded, they leave what they were lifted from by tens of meters, to where points are missed.
            if self.lifted_reach_m:
                moved_m = self.lifted_reach_m * (offsets_m[:, -count:] / self.offset_scale).tanh()
                offsets_m = torch.cat([offsets_m[:, :-count], moved_m], dim=1)
        out_m = start_m + offsets_m.unflatten(-1, (self.points_out, 3))  # (B, Q, R, 3)
        logits = self.classes(features, out_m.detach(), center_m, scene, columns)
        return LayerOutput(features, logits, (out_m - low_m) / extent_m)


class Sampling(nn.Module):
    """Read the pictures at G * P places around each query, the same places in every frame."""

    least_spread_m: Tensor
    weight_group: Tensor

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.config = config
        places = config.groups * config.sampling_points
        self.offset = nn.Linear(config.width, 3 * places)
        self.level_weight = nn.Linear(config.width, config.levels * places)
        nn.init.zeros_(self.offset.weight)
        nn.init.uniform_(self.offset.bias, -0.5, 0.5)
        least_m = config.least_spread_m[index] if config.least_spread_m else 0.0
        self.register_buffer("least_spread_m", least_m * torch.tensor([1.0, 1.0, 0.25]), persistent=False)
        frame = torch.arange(config.frames)[:, None]
        group = torch.arange(config.groups)[None].expand(config.frames, -1)
        if config.opus_level_weights:
            # Their features are stacked (frame, group), their level weights (group, frame), and
            # both are paired by flat index: the released weights were trained with it.
            group = (frame * config.groups + group) // config.frames
        self.register_buffer("weight_group", group.flatten(), persistent=False)  # (T*G,)

    def forward(self, features: Tensor, points_m: Tensor, center_m: Tensor, scene: Scene) -> Tensor:
        """Samples (B, Q, G, T*P, C/G), frame-major then point."""
        config = self.config
        batch, queries, width = features.shape
        groups, places, frames = config.groups, config.sampling_points, config.frames
        offset = self.offset(features).float().view(batch, queries, groups, places, 3)
        spread_m = torch.zeros_like(center_m) if points_m.shape[2] == 1 else points_m.std(dim=2)
        spread_m = spread_m.maximum(self.least_spread_m)
        places_m = center_m[:, :, None, None] + offset * spread_m[:, :, None, None]  # (B, Q, G, P, 3)
        where = project(places_m.flatten(1, 3), scene.image_from_base, scene.valid, config.image_size_px)
        shape = (batch, frames, queries, groups, places)
        u, v, view, seen, valid = (
            part.view(shape).transpose(2, 3).flatten(0, 2) for part in where[:-1]
        )  # (B*T*G, Q, P)

        weight = self.level_weight(features).float().view(batch, queries, groups, places, config.levels)
        weight = weight.softmax(dim=-1).index_select(2, self.weight_group)  # (B, Q, T*G, P, L)
        weight = weight.permute(4, 0, 2, 1, 3).reshape(config.levels, -1, 1, queries, places)
        weight = weight * (valid if config.sample_unseen else seen)[:, None]
        read = features.new_zeros(())
        for level, share in zip(scene.levels, weight.unbind(), strict=True):
            # (B, T, C, rows, W) -> (B*T*G, C/G, rows, W): groups are blocks of channels.
            maps = level.reshape(batch * frames * groups, width // groups, *level.shape[-2:])
            read = read + share * sample(maps, u, v, view, config.cameras)  # (B*T*G, C/G, Q, P)
        read = read.view(batch, frames, groups, width // groups, queries, places)
        return read.permute(0, 4, 2, 1, 5, 3).flatten(3, 4)  # (B, Q, G, T*P, C/G)


class AdaptiveMixing(nn.Module):
    """Mix channels, then points, of what was read by matrices made from the query (AdaMixer)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.groups = config.groups
        self.channels = config.width // config.groups
        self.points_in = config.frames * config.sampling_points
        self.points_out = config.mixing_points
        parameters = self.channels**2 + self.points_in * self.points_out
        self.generate = nn.Linear(config.width, config.groups * parameters)
        self.out = nn.Linear(config.groups * self.points_out * self.channels, config.width)
        nn.init.zeros_(self.generate.weight)

    def forward(self, features: Tensor, read: Tensor) -> Tensor:
        """Update (B, Q, C) from features (B, Q, C) and samples (B, Q, G, T*P, C/G)."""
        parameters = self.generate(features).unflatten(-1, (self.groups, -1))  # (B, Q, G, parameters)
        channel, point = parameters.split([self.channels**2, self.points_in * self.points_out], dim=-1)
        mixed = read @ channel.unflatten(-1, (self.channels, self.channels))  # (B, Q, G, in, C/G)
        mixed = F.relu(F.layer_norm(mixed, mixed.shape[-2:]))
        mixed = point.unflatten(-1, (self.points_out, self.points_in)) @ mixed  # (B, Q, G, out, C/G)
        mixed = F.relu(F.layer_norm(mixed, mixed.shape[-2:]))
        update: Tensor = self.out(mixed.flatten(2))
        return update


class SpatialAttention(nn.Module):
    """Self-attention whose logits fall with the distance of two queries, by a rate each query sets."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.rate = nn.Linear(config.width, config.heads)  # per meter, may be negative
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.rate.weight)
        nn.init.uniform_(self.rate.bias, 0.0, 2.0)

    def forward(self, features: Tensor, center_m: Tensor) -> Tensor:
        """Update (B, Q, C) of features (B, Q, C) at centers (B, Q, 3)."""
        batch, queries, width = features.shape
        q, k, v = self.qkv(features).view(batch, queries, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        distance_m = (center_m[:, :, None] - center_m[:, None]).norm(dim=-1)  # (B, Q, Q)
        rate = self.rate(features).transpose(1, 2)[..., None]  # (B, heads, Q, 1)
        # Written out: exporters trip over the memory layout that the fused attention leaves.
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) - rate * distance_m[:, None]
        share = F.dropout(logits.softmax(dim=-1), self.dropout, self.training)
        mixed = share @ v  # (B, heads, Q, C / heads)
        update: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, queries, width))
        return F.dropout(update, self.dropout, self.training)


class QueryClasses(nn.Module):
    """Classes of all points of a query from its feature alone, as OPUS has it."""

    def __init__(self, config: EncoderConfig, points: int) -> None:
        super().__init__()
        width = config.width
        self.shape = (points, config.classes)
        last = nn.Linear(width, points * config.classes)
        _set_prior(last, config)
        self.net = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(),
            nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(),
            last,
        )  # fmt: skip

    def forward(
        self, features: Tensor, points_m: Tensor, center_m: Tensor, scene: Scene, columns: Tensor | None
    ) -> Tensor:
        """Logits (B, Q, R, K), or of some columns of R."""
        logits: Tensor = self.net(features).float().unflatten(-1, self.shape)
        return logits if columns is None else logits[:, :, columns]


class PointClasses(nn.Module):
    """Class of each point from its query, its place, and the newest picture where it falls.

    With `surface_cue` also from what the 2-D head says there: classes, and how far before or behind the
    seen surface the point lies. A depth is a guess, so points are offered before and behind it, and this
    tells how likely each is.
    """

    _PICTURE_CHANNELS = 48
    _GAP_SCALES = (0.05, 0.2)  # of log depth, at which being near the surface counts

    def __init__(self, config: EncoderConfig, points: int) -> None:
        super().__init__()
        self.config = config
        width = config.point_class_width
        # No bias: the empty rows between stacked views stay empty.
        self.reduce = nn.Conv2d(config.width, self._PICTURE_CHANNELS, 1, bias=False)
        self.from_query = nn.Linear(config.width, width)
        cues = NUM_CLASSES + 2 + len(self._GAP_SCALES) if config.surface_cue else 0
        self.from_point = nn.Linear(self._PICTURE_CHANNELS + cues + 7, width, bias=False)
        self.out = nn.Linear(width, config.classes)
        _set_prior(self.out, config)

    def forward(
        self, features: Tensor, points_m: Tensor, center_m: Tensor, scene: Scene, columns: Tensor | None
    ) -> Tensor:
        """Logits (B, Q, R, K), or of some columns of R."""
        if columns is not None:
            points_m = points_m[:, :, columns]
        batch, queries, points, _ = points_m.shape
        where = project(
            points_m.flatten(1, 2),
            scene.image_from_base[:, :1],
            scene.valid[:, :1],
            self.config.image_size_px,
        )
        u, v, view, seen, _, depth_m = (part.view(batch, queries, points) for part in where)
        surface, weight = scene.surface, self.from_point.weight
        maps = self.reduce(scene.levels[0][:, 0])
        if surface is not None:
            maps = torch.cat([maps, surface[:, :-1].to(maps)], dim=1)
        # To read a map is linear, so the layer is applied to its few cells, not to what its many points read;
        # and with channels first, because to copy so many points takes longer than to multiply them.
        of_picture, of_place = weight.tensor_split([maps.shape[1]], dim=1)
        maps = F.conv2d(maps, of_picture[:, :, None, None]).float()
        if surface is not None:
            height, width = maps.shape[-2] // self.config.cameras - 2, maps.shape[-1]
            # The 2-D head speaks for the centers of cells, and depth jumps from one to the next.
            u = ((u * width - 0.5) / (width - 1)).clamp(0.0, 1.0)
            v = ((v * height - 0.5) / (height - 1)).clamp(0.0, 1.0)
            maps = torch.cat([maps, surface[:, -1:]], dim=1)
        read = sample(maps, u, v, view, self.config.cameras)  # (B, width, Q, R), and log depth
        gaps = [] if surface is None else [gap * seen for gap in self._gaps(read[:, -1], depth_m)]
        away_m = points_m - center_m[:, :, None]
        place = torch.stack([*gaps, *(points_m / 40.0).unbind(-1), *(away_m / 4.0).unbind(-1), seen], dim=1)
        # Contiguous, or the sum takes its layout; and in place: a copy costs as much as a multiplication.
        told = self.from_query(features).transpose(1, 2).contiguous()[..., None]  # (B, width, Q, 1)
        hidden = torch.addcmul(told, read[:, : len(weight)], seen[:, None]).flatten(2)
        hidden = hidden.baddbmm_(of_place.to(hidden).expand(batch, -1, -1), place.flatten(2)).relu_()
        out = self.out.weight.expand(batch, -1, -1) @ hidden + self.out.bias[:, None]  # (B, K, Q * R)
        return out.float().transpose(1, 2).unflatten(1, (queries, points))

    def _gaps(self, log_depth: Tensor, depth_m: Tensor) -> list[Tensor]:
        """How far points at a depth lie behind the surface, and whether near it in a few scales."""
        gap = depth_m.clamp(min=0.1).log() - log_depth  # (B, Q, R)
        return [gap.clamp(-2.0, 2.0), *((-gap.abs() / scale).exp() for scale in self._GAP_SCALES)]


class AuxiliaryHead(nn.Module):
    """Semantics and depth of each cell of the finest level.

    How large a thing looks is its size times focal length over depth. A network that is not told the focal
    length guesses a mean of its cameras': 30 % too far behind a wide one. With `depth_by_contact` the head
    says in which row of a cell's column its thing meets the ground, calibration says how far the ground is
    there, and what remains is a small factor.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.size_px = config.image_size_px
        self.rows = self.size_px[0] // config.backbone.strides[0] if config.depth_by_contact else 0
        pyramid, width = config.backbone.pyramid_width, config.auxiliary_width
        last = nn.Conv2d(width, NUM_CLASSES + 2 + self.rows, 1)
        # Before training every class is as likely as the next, and everything 15 m away, or on any row.
        start = 0.0 if self.rows else math.log(15.0)
        last.bias = nn.Parameter(torch.tensor([0.0] * (NUM_CLASSES + 1) + [start] + [0.0] * self.rows))
        self.net = nn.Sequential(nn.Conv2d(pyramid, width, 3, padding=1), nn.ReLU(), last)

    def forward(self, level: Tensor, base_from_image: Tensor) -> Auxiliary:
        """Of a level (B, N, C, H, W), whose pictures have the matrices (B, N, 4, 4)."""
        out = self.net(level.flatten(0, 1)).float().unflatten(0, level.shape[:2])
        logits, log_depth, rows = out.tensor_split([NUM_CLASSES + 1, NUM_CLASSES + 2], dim=2)
        log_depth = log_depth.squeeze(2)
        if self.rows:
            ground = ground_log_depth(base_from_image.float(), level.shape[-2:], self.size_px)
            log_depth = log_depth + (rows.softmax(dim=2) * ground[:, :, :, None]).sum(dim=2)
        return Auxiliary(logits, log_depth)


def ground_log_depth(base_from_image: Tensor, cells: Sequence[int], size_px: tuple[int, int]) -> Tensor:
    """Log of the depth (B, N, H, W) in meters at which rays of cells meet the ground, z = 0 of base_link.

    At and above the horizon it is that of the farthest ground.

    Args:
        base_from_image: (B, N, 4, 4).
        cells: H and W.
        size_px: height and width of the pictures.
    """
    (height, width), (height_px, width_px) = cells, size_px
    device = base_from_image.device
    u = (torch.arange(width, device=device) + 0.5) * (width_px / width)
    v = (torch.arange(height, device=device) + 0.5) * (height_px / height)
    z = base_from_image[..., 2, :, None, None]  # (B, N, 4, 1, 1)
    falling = -(z[:, :, 0] * u + z[:, :, 1] * v[:, None] + z[:, :, 2])  # (B, N, H, W), per meter of depth
    camera_height_m = z[:, :, 3].clamp(min=0.1)
    return (camera_height_m / falling.clamp(min=1e-6)).clamp(_NEAREST_GROUND_M, _FARTHEST_GROUND_M).log()


class Seeds(nn.Module):
    """Start queries where the auxiliary head sees something that stands on the ground.

    The picture is cut into squares of a few cells; each offers its cell most surely not ground nor
    sky, and the surest squares become queries, lifted by their depth. Counts are fixed, so that it
    exports; no gradient passes through the choice.
    """

    standing: Tensor
    depth_share: Tensor  # (points of a cell, 1, 1)

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        sides = [config.backbone.strides[0] * side for side in config.square]
        if any(size % side for size, side in zip(config.image_size_px, sides, strict=True)):
            raise ValueError(
                f"seeded_queries wants a picture of whole squares of {sides} px, got {config.image_size_px}"
            )
        self.feature = nn.Linear(config.backbone.pyramid_width, config.width)
        copies = config.points[-1] // config.square_cells if config.lifted_points else 1
        spread = config.lifted_spread if copies > 1 else 0.0
        self.register_buffer(
            "depth_share", torch.linspace(-spread, spread, copies).exp().view(-1, 1, 1), persistent=False
        )
        standing = torch.ones(NUM_CLASSES + 1)
        standing[[*FLAT_CLASSES, NUM_CLASSES]] = 0
        self.register_buffer("standing", standing.view(-1, 1, 1), persistent=False)

    def forward(
        self, level: Tensor, auxiliary: Auxiliary, base_from_image: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points (B, S, 3) in meters, where the points of their squares start (B, S, R or cells, 3), and
        features (B, S, C) of the seeded queries.
        """
        batch, cameras, _, height, width = level.shape
        probability = (auxiliary.logits.softmax(dim=2) * self.standing).sum(dim=2)  # (B, N, H, W)
        probability = self._squares(probability * valid[..., None, None])  # (B, N * squares, cells)
        best, place = probability.max(dim=-1)
        chosen = best.topk(self.config.seeded_queries, dim=1).indices  # (B, S)
        square = chosen[..., None].expand(-1, -1, self.config.square_cells)

        every = torch.arange(cameras * height * width, device=level.device)
        every = every.view(1, cameras, height, width).expand(batch, -1, -1, -1)
        index = self._squares(every).gather(1, square)  # (B, S, cells) of N*H*W
        depth_m = self._squares(auxiliary.log_depth).gather(1, square).exp().clamp(0.5, 60.0)
        image_height, image_width = self.config.image_size_px
        u = ((index % width) + 0.5) * (image_width / width)
        v = ((index // width) % height + 0.5) * (image_height / height)
        camera = index[..., :1] // (height * width)  # (B, S, 1)
        matrices = base_from_image.float().flatten(2).gather(1, camera.expand(-1, -1, 16))
        place = place.gather(1, chosen)[..., None]  # (B, S, 1)
        with torch.autocast(depth_m.device.type, enabled=False):  # pixels need more than bf16
            # In these coordinates a ray is a line through the camera at depth 0.
            rays = torch.stack([u, v, torch.ones_like(depth_m)], dim=-1) * depth_m[..., None]
            rotation, camera_m = matrices.unflatten(-1, (4, 4))[..., :3, :].split([3, 1], dim=-1)
            away_m = (rays @ rotation.transpose(-1, -2)).detach()  # (B, S, cells, 3)
            camera_m = camera_m.transpose(-1, -2)  # (B, S, 1, 3)
            points_m = away_m.gather(2, place[..., None].expand(-1, -1, -1, 3)) + camera_m
            lifted_m = (away_m[:, :, None] * self.depth_share).flatten(2, 3) + camera_m
        cells = level.transpose(2, 4).transpose(2, 3).flatten(1, 3)  # (B, N*H*W, C)
        seed = index.gather(2, place).expand(-1, -1, cells.shape[-1])
        return points_m.squeeze(2), lifted_m, self.feature(cells.gather(1, seed))

    def _squares(self, cells: Tensor) -> Tensor:
        """(B, N, H, W) as (B, N * squares, cells)."""
        batch, cameras, height, width = cells.shape
        rows, columns = self.config.square
        cut = cells.reshape(batch, cameras, height // rows, rows, width // columns, columns)
        return cut.transpose(3, 4).reshape(batch, -1, rows * columns)


def _surface(auxiliary: Auxiliary) -> Tensor:
    """What the 2-D head says, as a stacked map of class probabilities and log depth; no gradient."""
    said = torch.cat([auxiliary.logits.softmax(dim=2), auxiliary.log_depth[:, :, None]], dim=2)
    return stack_views(said.detach())


def _set_prior(last: nn.Linear, config: EncoderConfig) -> None:
    """Let a class head say `class_prior` for every class before training, as focal loss wants."""
    if not config.free_class:
        nn.init.constant_(last.bias, -math.log((1 - config.class_prior) / config.class_prior))
