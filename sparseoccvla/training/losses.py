"""What each part is trained to do. Pure functions of network outputs and targets.

Every loss comes as a `Term`: a sum over this process's part of the batch and what to divide it by.
Both are added over processes before the division (`reduce_terms`), so that two processes give the loss
of one at the same global batch.

Sources: OPUS (points, classes), SparseOccVLA (anchor score, trajectory, distillation).

Dimension legend:
    B batch    Q queries    R points per query    K classes (17, or 18 with free)
    n points of a sample    M occupied voxels of a sample    A anchors    S steps    I text tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseoccvla.contracts import (
    FLAT_CLASSES,
    FREE_CLASS,
    MOVABLE_CLASSES,
    NUM_CLASSES,
    NUM_MODES,
    OCC3D_GRID,
)
from sparseoccvla.encoder import Auxiliary, Decoded
from sparseoccvla.forecaster import ForecastStep
from sparseoccvla.planner import Diffusion
from sparseoccvla.training.nearest import Neighbors

IGNORE = 255  # label of a pixel that says nothing
NO_TEXT = -100  # id of a text token that is not to be predicted

# OPUS's weights of the 17 classes: things that matter and are few count more than ground.
_OPUS_CLASS_WEIGHTS = (10, 5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1)


class Term(NamedTuple):
    """A part of the loss before its division."""

    total: Tensor  # sum, carries the gradient
    divisor: Tensor  # what to divide by


@dataclass(frozen=True)
class OccupancyLossConfig:
    """The defaults are OPUS's."""

    beta_m: float = 0.2  # SmoothL1 is quadratic below
    point_weight: float = 0.5
    class_weight: float = 2.0
    class_weights: tuple[float, ...] = _OPUS_CLASS_WEIGHTS
    free_weight: float = 1.0
    free_beyond_m: float = 0.6  # cross-entropy: a point this far from all voxels is free
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    weigh_by_distance: bool = True  # 1 + xy distance / diagonal of the scene
    missed_beyond_m: float = 0.2  # a visible voxel with no point this near ...
    missed_weight: float = 5.0  # ... counts so much in the points' loss
    rare_classes: tuple[int, ...] = (0, 2, 5, 8)
    rare_weight: float = 10.0  # at least, for visible voxels of these
    movable_reach_m: float = 2.0  # of a forecast point of a movable class: farther voxels are another thing
    # Work on so many random points of each side and layer, searched among all of the other side: the
    # same gradient on average at a fraction of the cost. 0 takes all.
    drawn_points: int = 0
    # Share of the drawn voxels that is not ground, 0 draws evenly. Ground is three of four voxels,
    # and points collapse onto it.
    standing_share: float = 0.0
    visible_share: float = 0.0  # of the drawn voxels, likewise: those that a camera sees
    search_threads: int = 1  # neighbor searches on a CPU at once


class OccupancyTarget:
    """Occupied voxels of one sample, with their search tree.

    Args:
        points_m: (M, 3) centers in the label's own frame.
        labels: (M,) classes 0..16.
        visible: (M,) whether a camera sees the voxel.
        label_from_base: (4, 4) from base_link at t0, as labels are made at the lidar's time. Moving the
            predictions instead of the voxels keeps a tree valid for every epoch.
        bounded: leave out predictions outside the label's grid, as of a future one: nobody knows.
    """

    def __init__(
        self,
        points_m: Tensor,
        labels: Tensor,
        visible: Tensor,
        label_from_base: Tensor,
        bounded: bool = False,
    ) -> None:
        # A frame with nothing in it has no neighbors; the losses leave it out.
        self.neighbors = Neighbors(points_m)
        self.points_m = points_m
        self.labels = labels
        self.visible = visible
        self.label_from_base = label_from_base
        self.bounded = bounded
        self._below: tuple[tuple[float, float], Tensor] | None = None  # of the shares last asked for

    @cached_property
    def movable(self) -> Neighbors:
        """The voxels of movable classes; may be none."""
        movable = torch.isin(self.labels, self.labels.new_tensor(MOVABLE_CLASSES))
        return Neighbors(self.points_m[movable])

    def below(self, standing_share: float, visible_share: float) -> Tensor:
        """Running sum (M,) of weights that make these shares of drawn voxels standing and visible.

        A share of 0, or one of a group that is empty or everything, changes nothing.
        """
        if self._below is None or self._below[0] != (standing_share, visible_share):
            weight = torch.ones(len(self.labels), dtype=torch.float64, device=self.labels.device)
            standing = torch.ones_like(self.labels, dtype=torch.bool)
            for flat in FLAT_CLASSES:
                standing &= self.labels != flat
            for group, share in ((standing, standing_share), (self.visible, visible_share)):
                if not share:
                    continue
                inside = (weight * group).sum() / weight.sum()
                balanced = weight * torch.where(group, share / inside, (1 - share) / (1 - inside))
                weight = torch.where((inside > 0) & (inside < 1), balanced, weight)
            self._below = (standing_share, visible_share), weight.cumsum(dim=0)
        return self._below[1]

    def to(self, device: torch.device) -> OccupancyTarget:
        """The target on a device."""
        return OccupancyTarget(
            self.points_m.to(device),
            self.labels.to(device),
            self.visible.to(device),
            self.label_from_base.to(device),
            self.bounded,
        )

    def counts(self, points_m: Tensor) -> Tensor:
        """1 for each point (n, 3) of the label's frame that has a truth, else 0."""
        if not self.bounded:
            return torch.ones(len(points_m), device=points_m.device)
        low, high = points_m.new_tensor(OCC3D_GRID.min_m), points_m.new_tensor(OCC3D_GRID.max_m)
        return ((points_m > low) & (points_m < high)).all(dim=1).float()

    def in_label_frame(self, points_base_m: Tensor) -> Tensor:
        """Points (n, 3) of base_link at t0 in the label's frame."""
        return points_base_m @ self.label_from_base[:3, :3].T + self.label_from_base[:3, 3]


def occupancy_terms(
    decoded: Decoded,
    targets: Sequence[OccupancyTarget],
    config: OccupancyLossConfig,
    generators: Sequence[torch.Generator] | None = None,
    last_columns: Tensor | None = None,
) -> dict[str, Term]:
    """Points and classes of every decoder layer (deep supervision), and the initial points.

    Args:
        decoded: of the encoder, on the same device as the targets.
        targets: one for each sample of the batch.
        config: weights.
        generators: of the random draws, one for each sample.
        last_columns: as it was given to `Encoder.decode`.
    """
    layers = len(decoded.logits)
    clouds = [
        _Cloud(points_m, logits, last_columns if layer == layers - 1 else None)
        for layer, (points_m, logits) in enumerate(zip(decoded.points_m, decoded.logits, strict=True))
    ]
    clouds.append(_Cloud(decoded.initial_points_m, None, None))
    *parts, initial = _cloud_terms(clouds, targets, config, generators)
    terms = {f"{name}_{layer}": term for layer, part in enumerate(parts) for name, term in part.items()}
    return terms | {"points_initial": initial["points"]}


def forecast_terms(
    steps: Sequence[ForecastStep],
    targets: Sequence[Sequence[OccupancyTarget | None]],
    config: OccupancyLossConfig,
    generators: Sequence[torch.Generator] | None = None,
    labels: Tensor | None = None,
) -> dict[str, Term]:
    """Points and classes of each horizon; `targets[step][sample]` is None where no future is known.

    With `labels` (B, Q, R) of the points now there are no classes to learn, and only movable points move: see
    `_moving_term`.
    """
    terms: dict[str, Term] = {}
    for number, (step, wanted) in enumerate(zip(steps, targets, strict=True)):
        known = [i for i, target in enumerate(wanted) if target is not None]
        present = [target for target in wanted if target is not None]
        # Where nothing is known: every process must name the same terms.
        nothing = Term(0.0 * step.points_m.sum(), step.points_m.new_zeros(()))
        if labels is not None:
            moving = [
                _moving_term(step, labels[i], i, target, config)
                for i, target in zip(known, present, strict=True)
            ]
            terms[f"forecast_points_{number}"] = _sum([nothing, *moving])
        elif present:
            cloud = _Cloud(step.points_m[known], step.logits[known], None)
            some = [generators[i] for i in known] if generators else None
            [parts] = _cloud_terms([cloud], present, config, some)
            terms |= {f"forecast_{name}_{number}": term for name, term in parts.items()}
        else:
            terms |= {f"forecast_points_{number}": nothing, f"forecast_classes_{number}": nothing}
    return terms


def _moving_term(
    step: ForecastStep, labels: Tensor, sample: int, target: OccupancyTarget, config: OccupancyLossConfig
) -> Term:
    """SmoothL1 of those points of a sample that are movable now, by `labels` (Q, R).

    A point is drawn to the nearest voxel of a movable class: that of any class is mostly the ground under
    it. One that finds none within reach has left, or was never there.
    """
    moves = torch.isin(labels, labels.new_tensor(MOVABLE_CLASSES)).flatten()
    points_m = target.in_label_frame(step.points_m[sample].flatten(0, 1)[moves])
    if not len(points_m) or not len(target.movable.points_m):
        return Term(0.0 * points_m.sum(), points_m.new_zeros(()))
    wanted_m = target.movable.points_m[target.movable.nearest(points_m)]
    counts = target.counts(points_m.detach())
    counts = counts * ((points_m.detach() - wanted_m).norm(dim=1) < config.movable_reach_m)
    loss = F.smooth_l1_loss(points_m, wanted_m, reduction="none", beta=config.beta_m).sum(dim=1)
    return Term(config.point_weight * (loss * counts).sum(), counts.sum())


class _Cloud(NamedTuple):
    """Points (B, Q, R, 3) with logits (B, Q, R or columns, K) of all or of some columns of R."""

    points_m: Tensor
    logits: Tensor | None
    columns: Tensor | None


class _Match(NamedTuple):
    """Nearest neighbors both ways of one sample's points and voxels, and which were drawn to be asked."""

    voxels: Tensor  # drawn, into the voxels
    found: Tensor  # nearest point of each, into the points
    asked: Tensor  # drawn, into the asked points (those of the columns)
    nearest: Tensor  # nearest voxel of each, into the voxels


def _cloud_terms(
    clouds: Sequence[_Cloud],
    targets: Sequence[OccupancyTarget],
    config: OccupancyLossConfig,
    generators: Sequence[torch.Generator] | None,
) -> list[dict[str, Term]]:
    """Terms "points" and, where there are logits, "classes" of each cloud over the batch."""
    jobs = []
    for cloud in clouds:
        columns = slice(None) if cloud.columns is None else cloud.columns
        for sample, target in enumerate(targets):
            generator = generators[sample] if generators else None
            points_m = target.in_label_frame(cloud.points_m[sample].flatten(0, 1))
            asked_m = points_m.view(cloud.points_m.shape[1:])[:, columns].flatten(0, 1)
            drawn = _drawn(len(asked_m), config.drawn_points, asked_m.device, generator)
            jobs.append((points_m, asked_m[drawn], target, _drawn_voxels(target, config, generator), drawn))
    # Searches release the interpreter's lock; everything else is quick.
    if config.search_threads > 1:
        with ThreadPoolExecutor(config.search_threads) as pool:
            matches = list(pool.map(_match, *zip(*jobs, strict=True)))
    else:
        matches = [_match(*job) for job in jobs]
    terms = []
    for number, cloud in enumerate(clouds):
        points, classes = [], []
        for sample, target in enumerate(targets):
            place = number * len(targets) + sample
            points_m, asked_m, *_ = jobs[place]
            match = matches[place]
            points.append(_point_term(points_m, asked_m, match, target, config))
            if cloud.logits is not None:
                logits = cloud.logits[sample].flatten(0, 1)[match.asked]
                classes.append(_class_term(asked_m.detach(), logits, match.nearest, target, config))
        terms.append({"points": _sum(points)} | ({"classes": _sum(classes)} if classes else {}))
    return terms


def _match(
    points_m: Tensor, asked_m: Tensor, target: OccupancyTarget, voxels: Tensor, asked: Tensor
) -> _Match:
    if not len(target.points_m):
        return _Match(voxels, voxels, asked, asked)
    found = Neighbors(points_m.detach()).nearest(target.points_m[voxels])
    return _Match(voxels, found, asked, target.neighbors.nearest(asked_m))


def _point_term(
    points_m: Tensor, asked_m: Tensor, match: _Match, target: OccupancyTarget, config: OccupancyLossConfig
) -> Term:
    """SmoothL1 between nearest neighbors in both directions; source: OPUS, `loss_single`.

    The two directions are averaged each over its own number; their sum is the term, so its count is 1.
    """
    if not len(target.points_m):
        return Term(0.0 * points_m.sum(), points_m.new_ones(()))
    found_m, voxels_m = points_m[match.found], target.points_m[match.voxels]
    weight = _voxel_weights(found_m.detach(), match.voxels, target, config)
    to_voxels = F.smooth_l1_loss(found_m, voxels_m, reduction="none", beta=config.beta_m).sum(dim=1)
    nearest_m = target.points_m[match.nearest]
    to_points = F.smooth_l1_loss(asked_m, nearest_m, reduction="none", beta=config.beta_m).sum(dim=1)
    counts = target.counts(asked_m.detach())
    total = (weight * to_voxels).mean() + (counts * to_points).sum() / counts.sum().clamp(min=1)
    return Term(config.point_weight * total, total.new_ones(()))


def _voxel_weights(
    found_m: Tensor, voxels: Tensor, target: OccupancyTarget, config: OccupancyLossConfig
) -> Tensor:
    """Weights (n,) of drawn voxels: more for what is visible and missed, or visible and rare."""
    visible, labels = target.visible[voxels], target.labels[voxels]
    missed = (found_m - target.points_m[voxels]).norm(dim=1) > config.missed_beyond_m
    weight = torch.where(missed & visible, config.missed_weight, 1.0)
    rare = torch.isin(labels, torch.tensor(config.rare_classes, device=labels.device, dtype=labels.dtype))
    return torch.where(rare & visible, weight.clamp(min=config.rare_weight), weight)


def _class_term(
    points_m: Tensor, logits: Tensor, nearest: Tensor, target: OccupancyTarget, config: OccupancyLossConfig
) -> Term:
    """Class of the nearest voxel: sigmoid focal loss for 17 logits, cross-entropy with free for 18."""
    if len(target.points_m):
        labels = target.labels[nearest].long()
        gap_m = (points_m - target.points_m[nearest]).norm(dim=1)
    else:
        labels = torch.full((len(points_m),), FREE_CLASS, device=points_m.device)
        gap_m = torch.full((len(points_m),), torch.inf, device=points_m.device)
    counts = target.counts(points_m)
    weight = counts
    if config.weigh_by_distance:
        weight = counts + counts * points_m[:, :2].norm(dim=1) / (80.0 * 2**0.5)
    class_weights = logits.new_tensor(config.class_weights)
    if logits.shape[1] == NUM_CLASSES:
        loss = focal_loss(logits, labels, config.focal_gamma, config.focal_alpha)  # (n, K)
        total = (loss * class_weights).sum(dim=1).mul(weight).sum()
    else:
        labels = torch.where(gap_m > config.free_beyond_m, FREE_CLASS, labels)
        class_weights = torch.cat([class_weights, class_weights.new_tensor([config.free_weight])])
        loss = F.cross_entropy(logits, labels, reduction="none")
        total = (loss * class_weights[labels] * weight).sum()
    return Term(config.class_weight * total, counts.sum())


def focal_loss(logits: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    """Sigmoid focal loss (n, K); a label of K or more is no class. Source: Lin et al., ICCV 2017."""
    wanted = F.one_hot(labels.clamp(max=logits.shape[1]), logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    cross = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    probability = logits.sigmoid()
    missing = wanted * (1 - probability) + (1 - wanted) * probability
    balance = wanted * alpha + (1 - wanted) * (1 - alpha)
    return balance * missing**gamma * cross


def _drawn(count: int, most: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Indices of all, or of `most` drawn evenly with replacement."""
    if not most or count <= most:
        return torch.arange(count, device=device)
    return torch.randint(count, (most,), generator=generator).to(device)


def _drawn_voxels(
    target: OccupancyTarget, config: OccupancyLossConfig, generator: torch.Generator | None
) -> Tensor:
    """Indices of voxels, given shares of them standing and visible when asked for."""
    count, device = len(target.points_m), target.points_m.device
    if not config.drawn_points or not count or not (config.standing_share or config.visible_share):
        return _drawn(count, config.drawn_points, device, generator)
    # With replacement: a scene with few of a kind repeats them.
    chance = torch.rand(config.drawn_points, generator=generator, dtype=torch.float64).to(device)
    below = target.below(config.standing_share, config.visible_share)
    return torch.searchsorted(below, chance * below[-1], right=True).clamp(max=count - 1)


def auxiliary_terms(
    auxiliary: Auxiliary, labels: Tensor, depth_m: Tensor, config: OccupancyLossConfig
) -> dict[str, Term]:
    """Semantics and log depth of the 2-D head, pixels weighed as the classes of voxels are.

    A pedestrian far off has a few cells in a picture of road and walls; unweighted, none is ever found.

    Args:
        auxiliary: of the encoder.
        labels: (B, N, H, W) 0..16, FREE_CLASS for sky, IGNORE.
        depth_m: (B, N, H, W) along the optical axis, 0 where there is none.
        config: its class weights, that of free for the sky and for what has no label.
    """
    known = labels != IGNORE
    weights = auxiliary.logits.new_tensor([*config.class_weights, config.free_weight])
    weight = weights[labels.long().clamp(max=FREE_CLASS)]
    logits = auxiliary.logits.movedim(2, -1)[known]
    semantics = F.cross_entropy(logits, labels[known].long(), weights, reduction="sum")
    weight_of_depth = weight * (depth_m > 0)
    gap = (auxiliary.log_depth - depth_m.clamp(min=0.1).log()).abs()
    return {
        "auxiliary_classes": Term(semantics, (weight * known).sum()),
        "auxiliary_depth": Term((gap * weight_of_depth).sum(), weight_of_depth.sum()),
    }


def nearest_anchor(anchors_m: Tensor, future_m: Tensor, valid: Tensor, anchor_rows: Tensor) -> Tensor:
    """Index (B,) into A of the command's anchor nearest the true path, on its valid steps.

    Args:
        anchors_m: (A, S, 2).
        future_m: (B, S, 2) cumulative.
        valid: (B, S).
        anchor_rows: (B,) `Command.anchor_row`.
    """
    gap_m = (anchors_m[None] - future_m[:, None]).norm(dim=-1)  # (B, A, S)
    mean = (gap_m * valid[:, None]).sum(dim=-1) / valid.sum(dim=-1, keepdim=True).clamp(min=1)
    row = torch.arange(len(anchors_m), device=mean.device) // NUM_MODES
    return mean.masked_fill(row[None] != anchor_rows[:, None], torch.inf).argmin(dim=1)


def score_term(logits: Tensor, positive: Tensor, valid: Tensor) -> Term:
    """Binary cross-entropy of scores (B, A); `positive` (B,) is the true anchor of valid samples (B,)."""
    wanted = F.one_hot(positive, logits.shape[1]).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)
    return Term((loss * valid).sum(), valid.sum())


def trajectory_term(clean: Tensor, future_m: Tensor, valid: Tensor, diffusion: Diffusion) -> Term:
    """L1 in meters of per-step offsets of the positive candidate.

    Args:
        clean: (B, 1, S, 2) normalized offsets that `Planner.denoise` predicts.
        future_m: (B, S, 2) true cumulative path.
        valid: (B, S); a step counts when it and all before it are known.
        diffusion: units.
    """
    known = valid.to(clean.dtype).cumprod(dim=1)
    gap = (clean[:, 0] - diffusion.normalized_offsets(future_m)).abs() * diffusion.half_m
    return Term((gap.sum(dim=-1) * known).sum(), known.sum())


def text_term(logits: Tensor, ids: Tensor) -> Term:
    """Cross-entropy of the next token: logits (B, I, V) against ids (B, I), NO_TEXT where none is asked."""
    wanted = ids[:, 1:].flatten()
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=NO_TEXT, reduction="sum"
    )
    return Term(loss, (wanted != NO_TEXT).sum())


def reduce_terms(
    terms: Mapping[str, Term],
    weights: Mapping[str, float],
    sum_over_processes: Callable[[Tensor], Tensor] = lambda count: count,
    processes: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to differentiate, and each part's value on this process's share for people.

    Counts are summed over processes before the division. Gradients are averaged over processes by
    whoever synchronizes them, hence the factor.

    Args:
        terms: equal names on every process.
        weights: of parts by the beginning of their name, longest match; 1 where none matches.
        sum_over_processes: of a (parts,) tensor.
        processes: how many there are.
    """
    counts = sum_over_processes(torch.stack([term.divisor.detach().float() for term in terms.values()]))
    values = {
        name: processes * term.total / count.clamp(min=1.0)
        for (name, term), count in zip(terms.items(), counts, strict=True)
    }
    loss = torch.stack([weight_of(name, weights) * value for name, value in values.items()]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


def weight_of(name: str, weights: Mapping[str, float]) -> float:
    """Weight of a part: that of the longest key it begins with, else 1."""
    keys = [key for key in weights if name.startswith(key)]
    return weights[max(keys, key=len)] if keys else 1.0


def _sum(terms: Sequence[Term]) -> Term:
    return Term(
        torch.stack([term.total for term in terms]).sum(), torch.stack([term.divisor for term in terms]).sum()
    )
