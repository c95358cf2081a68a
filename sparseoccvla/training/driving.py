"""What reasoner, forecaster and planner learn from a keyframe; shared by the stages `planning` and `joint`.

A step takes some keyframes, and for those whose T_r comes late the earlier keyframe it belongs to. One
pass of the language model over all of them gives T_r, the forecaster's tokens and every answer.

Dimension legend:
    B keyframes that are planned    H keyframes that the language model sees    F keyframes in all
    Q queries    R points per query    C query width    D token width    A anchors    S steps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.contracts import FORECAST_HORIZONS_S, NS_PER_S, NUM_MODES, OCC3D_GRID
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.edits import EditedKeyframe
from sparseoccvla.data.samples import Truth
from sparseoccvla.ego_state import ego_numbers
from sparseoccvla.evaluation.questions import questions_about
from sparseoccvla.forecaster import Present
from sparseoccvla.geometry import inverse, transform
from sparseoccvla.planner import Planner, PlannerInputs
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.training.batches import draw_seed, occupancy_target
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.losses import (
    OccupancyTarget,
    Term,
    forecast_terms,
    nearest_anchor,
    score_term,
    trajectory_term,
)
from sparseoccvla.training.packing import Said, TextPack, Texts, answer_logits, answer_term, packed_pass

_NEAR_S = 0.15  # a future keyframe this near a horizon is the truth at it


@dataclass(frozen=True)
class DrivingTruth:
    """What is true of the keyframes of a step."""

    pack: TextPack  # of the H keyframes that the language model sees, the first of all
    reasoning_of: Tensor  # (B,) which of these T_r comes from
    has_reasoning: Tensor  # (B,)
    reasoning_age_s: Tensor  # (B,)
    ego: Tensor  # (B, EGO_NUMBERS)
    anchor_row: Tensor  # (B,)
    future_m: Tensor  # (B, S, 2)
    future_valid: Tensor  # (B, S)
    forecast: list[list[OccupancyTarget | None]]  # of each horizon, for the first keyframes
    seeds: list[int]

    def to(self, device: torch.device) -> DrivingTruth:
        """The truth on a device."""
        if device.type == "cpu":
            return self
        moved = {
            item.name: getattr(self, item.name).to(device)
            for item in fields(self)
            if item.name not in ("forecast", "seeds")
        }
        forecast = [[target and target.to(device) for target in step] for step in self.forecast]
        return DrivingTruth(**moved, forecast=forecast, seeds=self.seeds)


class DrivingSampler:
    """Draws keyframes with what is true of them.

    Args:
        cache: of the training split.
        texts: of the language model.
        config: what to draw.
        seed: of the run.
        edits: keyframes of the split with edited pictures, which `draw` numbers behind its own.
    """

    def __init__(
        self,
        cache: SampleCache,
        texts: Texts,
        config: DrivingTraining,
        seed: int,
        edits: Sequence[EditedKeyframe] = (),
    ) -> None:
        self._cache = cache
        self._edits = edits
        self._texts = texts
        self._config = config
        self._seed = seed
        truths = [cache.truth(index) for index in range(len(cache))]
        self._scene = [truth.scene for truth in truths]
        self._t0_ns = [truth.t0_ns for truth in truths]
        self._sight = np.flatnonzero(cache.needs_sight)

    def draw(self, places: Sequence[tuple[int, int]]) -> tuple[list[int], DrivingTruth]:
        """The F samples for (position in the run, sample) pairs, and what is true of them."""
        config = self._config
        spoken = max(1, round(config.spoken_share * len(places)))
        now: list[int] = []
        late: list[int] = []
        reasoning_of, has, age_s, rngs = [], [], [], []
        for number, (position, index) in enumerate(places):
            rng = np.random.default_rng([self._seed, position, 4])
            if self._edits and rng.random() < config.edited_share:
                index = len(self._scene) + int(rng.integers(len(self._edits)))
            elif len(self._sight) and rng.random() < config.sight_share:
                index = int(rng.choice(self._sight))
            kind, lag = rng.random(), int(rng.integers(1, config.stale_frames + 1))
            earlier = index - lag
            silent = number >= spoken
            stale = not silent and kind < config.stale_share and self._follows(index, earlier)
            now.append(index)
            reasoning_of.append(0 if silent else spoken + len(late) if stale else number)
            age_s.append((self._t0_ns[index] - self._t0_ns[earlier]) / NS_PER_S if stale else 0.0)
            has.append(float(not silent and kind < 1 - config.null_share))
            if stale:
                late.append(earlier)
            rngs.append(rng)
        heard = now[:spoken] + late
        samples = heard + now[spoken:]
        asked = [self._conversation(index, rngs[i % len(rngs)]) for i, index in enumerate(heard)]
        truths = [self._truth(index) for index in now]
        truth = DrivingTruth(
            self._texts.pack(asked),
            torch.tensor(reasoning_of),
            torch.tensor(has),
            torch.tensor(age_s) * torch.tensor(has),
            torch.from_numpy(np.stack([ego_numbers(truth.ego) for truth in truths])),
            torch.tensor([truth.command.anchor_row for truth in truths]),
            torch.from_numpy(np.stack([truth.future[:, :2] for truth in truths])).float(),
            torch.from_numpy(np.stack([truth.future_valid for truth in truths])),
            [
                [self.future(index, horizon) for index in now[: min(spoken, config.forecast_samples)]]
                for horizon in FORECAST_HORIZONS_S
            ],
            [draw_seed(self._seed, position) for position, _ in places],
        )
        return samples, truth

    def _follows(self, index: int, earlier: int) -> bool:
        """Whether an earlier keyframe is one of the same scene; none before an edited one shows its edit."""
        return earlier >= 0 and index < len(self._scene) and self._scene[earlier] == self._scene[index]

    def _truth(self, index: int) -> Truth:
        """What is true of a keyframe; of an edited one, what the driver does where its edit is true."""
        if index < len(self._scene):
            return self._cache.truth(index)
        edit = self._edits[index - len(self._scene)]
        truth = self._cache.truth(self._cache.tokens.index(edit.sample_token))
        if not edit.hazard:
            return truth
        return replace(truth, future=edit.future, future_valid=np.ones(len(edit.future), bool))

    def _conversation(self, index: int, rng: np.random.Generator) -> list[tuple[str, str, bool]]:
        if index >= len(self._scene):
            return []  # what is said of the keyframe may be false of its edit
        questions = questions_about(self._cache.language(index))
        many = min(self._config.questions, len(questions))
        chosen = [questions[i] for i in rng.permutation(len(questions))[:many]]
        return [
            (
                turned(question.text, rng) if rng.random() < self._config.turned_share else question.text,
                question.reference,
                bool(question.type),
            )
            for question in chosen
        ]

    def later(self, index: int, horizon_s: float) -> int | None:
        """The keyframe of the same scene that is so much later."""
        wanted = self._t0_ns[index] + round(horizon_s * NS_PER_S)
        for other in range(index + 1, len(self._scene)):
            if self._scene[other] != self._scene[index] or self._t0_ns[other] > wanted + _NEAR_S * NS_PER_S:
                return None
            if abs(self._t0_ns[other] - wanted) <= _NEAR_S * NS_PER_S:
                return other
        return None

    def label_from_base(self, index: int, other: int) -> NDArray[np.float64]:
        """(4, 4) base_link at t0 of a keyframe to the label's frame of another one of its scene."""
        cache = self._cache
        base_from_label = (
            inverse(cache.odom_from_base(index))
            @ cache.odom_from_base(other)
            @ cache.truth(other).base_from_label
        )
        return inverse(base_from_label)

    def future(self, index: int, horizon_s: float) -> OccupancyTarget | None:
        """The label of a horizon, without what drives into the grid from outside: nobody can know it."""
        if index >= len(self._scene):
            return None
        other = self.later(index, horizon_s)
        label = self._cache.occupancy(other) if other is not None else None
        if other is None or label is None:
            return None
        label_from_base = self.label_from_base(index, other)
        whole = occupancy_target(label, inverse(label_from_base))
        base_m = transform(inverse(label_from_base), whole.points_m.numpy())
        inside = ((base_m > OCC3D_GRID.min_m) & (base_m < OCC3D_GRID.max_m)).all(axis=1)
        kept = torch.from_numpy(inside)
        return OccupancyTarget(
            whole.points_m[kept], whole.labels[kept], whole.visible[kept], whole.label_from_base, bounded=True
        )


def turned(question: str, rng: np.random.Generator) -> str:
    """The question begun at another of its words: "Is the car far?" is also asked as "Car far is the?"."""
    words = question.rstrip("?").split()
    if len(words) < 2:
        return question
    first = int(rng.integers(1, len(words)))
    words[0] = words[0][0].lower() + words[0][1:]
    text = " ".join(words[first:] + words[:first]).rstrip(",")
    return text[0].upper() + text[1:] + "?" * question.endswith("?")


def driving_terms(
    reasoner: Reasoner,
    planner: Planner,
    features: Tensor,
    points_m: Tensor,
    present: Present,
    truth: DrivingTruth,
    config: DrivingTraining,
    anchors_m: Tensor,
) -> dict[str, Term]:
    """Loss terms of text, forecast, scores and path.

    Args:
        reasoner: with forecaster.
        planner: scorer and decoder.
        features: Q_L (F, Q, C).
        points_m: P_L (F, Q, R, 3).
        present: the points that are forecast, all or some of each query (F, ...).
        truth: of these keyframes.
        config: of what is learned.
        anchors_m: (A, S, 2).
    """
    generators = [torch.Generator().manual_seed(seed) for seed in truth.seeds]
    heard = len(truth.pack.ids)
    said = packed_pass(reasoner, features[:heard], points_m[:heard], truth.pack)
    terms = {"text": answer_term(*answer_logits(reasoner, said, truth.pack))}
    terms |= _future_terms(reasoner, features, present, said, truth, config, generators)
    # Keyframes that only lend their T_r stand between those that are planned.
    silent = len(features) - heard
    spoken = len(truth.ego) - silent
    planned = torch.cat([torch.arange(spoken), torch.arange(heard, len(features))]).to(features.device)
    inputs = PlannerInputs(
        features[planned],
        points_m[planned],
        truth.ego,
        said.prefill.reasoning[truth.reasoning_of],
        truth.has_reasoning,
        truth.reasoning_age_s,
    )
    return terms | plan_terms(planner, inputs, truth, anchors_m, config)


def plan_terms(
    planner: Planner, inputs: PlannerInputs, truth: DrivingTruth, anchors_m: Tensor, config: DrivingTraining
) -> dict[str, Term]:
    """Loss terms of scores and path.

    Args:
        planner: scorer and decoder.
        inputs: of B plans.
        truth: of these.
        anchors_m: (A, S, 2).
        config: of what is learned.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in truth.seeds]
    positive = nearest_anchor(anchors_m, truth.future_m, truth.future_valid, truth.anchor_row)
    known = truth.future_valid.all(dim=1).float()
    context = planner.context(dimmed(inputs, config, generators))
    noise = torch.stack([torch.randn(1, *anchors_m.shape[1:], generator=g) for g in generators])
    t = torch.cat([torch.randint(planner.config.trained_timesteps, (1,), generator=g) for g in generators])
    logits = planner.scorer(context, anchors_m)
    start = drawn_starts(logits.detach(), positive, truth.anchor_row, config.own_start_share, generators)
    clean = planner.denoise_in(context, anchors_m[start][:, None], noise.to(anchors_m), t.to(positive))
    return {
        "score": score_term(logits, positive, known),
        "path": trajectory_term(clean.float(), truth.future_m, truth.future_valid, planner.diffusion),
    }


def dimmed(
    inputs: PlannerInputs, config: DrivingTraining, generators: Sequence[torch.Generator]
) -> PlannerInputs:
    """The inputs with some numbers of their queries dropped, and some samples without any query."""
    if not config.blurred_share and not config.blind_share:
        return inputs
    kept = 1.0 - config.blurred_share
    features = inputs.features
    seen = torch.cat([torch.rand(1, generator=g) for g in generators]).ge(config.blind_share)
    share = torch.stack([torch.rand(features.shape[1:], generator=g) for g in generators]).lt(kept) / kept
    seen = seen.to(features)[:, None, None]
    return inputs._replace(
        features=features * share.to(features) * seen, points_m=inputs.points_m * seen[..., None]
    )


def drawn_starts(
    logits: Tensor,
    positive: Tensor,
    anchor_rows: Tensor,
    own_share: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Anchors (B,) that paths are learned from: the nearest, or one of the command's that the scorer draws.

    Args:
        logits: (B, A) of the scorer.
        positive: (B,) nearest anchors.
        anchor_rows: (B,) `Command.anchor_row`.
        own_share: how often the scorer draws.
        generators: of the draws, one for each sample.
    """
    if not own_share:
        return positive
    rows = torch.arange(logits.shape[1], device=logits.device) // NUM_MODES
    shares = logits.masked_fill(rows[None] != anchor_rows[:, None], -torch.inf).softmax(dim=1).cpu()
    drawn = [
        torch.multinomial(share, 1, generator=g) if torch.rand(1, generator=g) < own_share else nearest
        for share, g, nearest in zip(shares, generators, positive.cpu()[:, None], strict=True)
    ]
    return torch.cat(drawn).to(positive)


def _future_terms(
    reasoner: Reasoner,
    features: Tensor,
    present: Present,
    said: Said,
    truth: DrivingTruth,
    config: DrivingTraining,
    generators: list[torch.Generator],
) -> dict[str, Term]:
    """Forecast terms of the first keyframes."""
    some = len(truth.forecast[0])
    if not some:
        return {}
    first = Present(*(part[:some] for part in present))
    steps = reasoner.forecast(features[:some], first, said.prefill.occupancy[:some])
    with torch.autocast(features.device.type, enabled=False):
        steps = tuple(step._replace(logits=step.logits.float()) for step in steps)
        labels = first.labels if reasoner.config.forecast_from_present else None
        return forecast_terms(steps, truth.forecast, config.occupancy, generators, labels)


def driving_weights(config: DrivingTraining) -> dict[str, float]:
    """Weights of the terms of `driving_terms`."""
    return {
        "text": config.text_weight,
        "score": config.score_weight,
        "path": config.path_weight,
        "forecast": config.forecast_weight,
    }
