"""Figures of plans, answers and forecasts on a few validation keyframes while training goes on.

Next to each stands what needs no eyes: constant velocity, and the present that stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.contracts import FORECAST_HORIZONS_S, NUM_CLASSES, NUM_MODES, OccupancyPoints
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.ego_state import ego_numbers
from sparseoccvla.evaluation.questions import Question, questions_about
from sparseoccvla.forecaster import ForecastStep
from sparseoccvla.geometry import transform
from sparseoccvla.metrics.baselines import constant_velocity
from sparseoccvla.metrics.language import LanguageMetric
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.planner import Planner, PlannerInputs
from sparseoccvla.prompts import Turn, prompt
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.proposal import noise_of
from sparseoccvla.training.driving import DrivingSampler
from sparseoccvla.training.losses import nearest_anchor
from sparseoccvla.training.occupancy_check import dense, spread
from sparseoccvla.training.packing import Texts, answer_logits, packed_pass
from sparseoccvla.training.tokens import Queries
from sparseoccvla.voxels import VoxelRule, drop_strays, voxelize

_LONGEST_ANSWER = 60  # tokens
_FORECASTS = 6

QueriesOfIndex = Callable[[int], Queries]  # of a sample, a batch of one


@dataclass(frozen=True)
class Minds:
    """The networks behind the encoder."""

    reasoner: Reasoner
    planner: Planner


class DrivingCheck:
    """Scores reasoner and planner on validation keyframes, a half of them event frames if there are so many.

    Args:
        cache: of the validation split.
        samples: how many keyframes.
        answers: how many open answers are written out.
        texts: of the language model.
        sampler: of the same cache; finds futures.
        anchors_m: (A, S, 2).
        rule: of the forecast's voxels.
        style: of the prompt.
    """

    def __init__(
        self,
        cache: SampleCache,
        samples: int,
        answers: int,
        texts: Texts,
        sampler: DrivingSampler,
        anchors_m: Tensor,
        rule: VoxelRule,
        style: str,
    ) -> None:
        self._cache, self._texts, self._sampler = cache, texts, sampler
        self._anchors_m, self._rule, self._style = anchors_m, rule, style
        self._answers = answers
        sight = np.flatnonzero(cache.needs_sight)
        rest = np.flatnonzero(~cache.needs_sight)
        half = min(samples // 2, len(sight))
        halves = ((sight, half), (rest, samples - half))
        self._indices = [int(of[i]) for of, n in halves for i in spread(len(of), n)]

    @torch.no_grad()
    def __call__(self, minds: Minds, queries: QueriesOfIndex) -> dict[str, float]:
        """Figures; the networks are in evaluation mode."""
        figures = self._plans(minds, queries)
        figures |= self._texts_of(minds.reasoner, queries)
        return figures | self._forecasts(minds.reasoner, queries)

    def _plans(self, minds: Minds, queries: QueriesOfIndex) -> dict[str, float]:
        """L2 in meters over 3 s of the chosen path, beside constant velocity; all and event frames."""
        gaps: list[tuple[float, float, float, bool, bool, float]] = []
        device = minds.reasoner.reasoning_token.device
        for index in self._indices:
            truth = self._cache.truth(index)
            if not truth.future_valid.all():
                continue
            seen = queries(index).to(device)
            features, points_m = seen.features, seen.points_m
            planning = minds.reasoner.prefill(
                features, points_m, torch.tensor(self._texts.planning, device=device)
            )
            one = torch.ones(1, device=device)
            ego = torch.from_numpy(ego_numbers(truth.ego))[None].to(device)
            anchors_m = self._anchors_m.to(device)
            noise = torch.from_numpy(noise_of(0, truth.t0_ns))[None].to(device)
            first = truth.command.anchor_row * NUM_MODES
            ends = []
            for has in (one, 0 * one):
                inputs = PlannerInputs(features, points_m, ego, planning.reasoning, has, 0 * one)
                paths_m, scores = minds.planner(inputs, anchors_m, noise)
                chosen = first + int(scores[0, first : first + NUM_MODES].argmax())
                ends.append((paths_m[0, chosen].cpu().numpy(), chosen))
            future_m = truth.future[:, :2]
            right = nearest_anchor(
                anchors_m.cpu(),
                torch.from_numpy(future_m)[None].float(),
                torch.ones(1, len(future_m)),
                torch.tensor([truth.command.anchor_row]),
            )
            still = constant_velocity(truth.ego)[:, :2]
            gaps.append(
                (
                    _gap(ends[0][0], future_m),
                    _gap(ends[1][0], future_m),
                    _gap(still, future_m),
                    ends[0][1] == int(right),
                    truth.needs_sight,
                    _gap(ends[0][0][:2], future_m[:2]),
                )
            )
        if not gaps:
            return {}
        table = np.array(gaps, float)
        event = table[:, 4] > 0
        figures = {
            "L2_1s": float(table[:, 5].mean()),
            "L2_3s": float(table[:, 0].mean()),
            "L2_3s_null_token": float(table[:, 1].mean()),
            "L2_3s_constant_velocity": float(table[:, 2].mean()),
            "anchor_accuracy": float(table[:, 3].mean()),
        }
        if event.any():
            figures["L2_3s_events"] = float(table[event, 0].mean())
        return figures

    def _texts_of(self, reasoner: Reasoner, queries: QueriesOfIndex) -> dict[str, float]:
        """Loss of answers' tokens, accuracy of closed ones (all tokens right), CIDEr of written-out ones."""
        device = reasoner.reasoning_token.device
        lost = told = right = closed = 0.0
        written = LanguageMetric()
        for index in self._indices:
            questions = questions_about(self._cache.language(index))
            if not questions:
                continue
            seen = queries(index).to(device)
            features, points_m = seen.features, seen.points_m
            pack = self._texts.pack([[(q.text, q.reference, bool(q.type)) for q in questions]]).to(device)
            said = packed_pass(reasoner, features, points_m, pack)
            logits, wanted = answer_logits(reasoner, said, pack)
            lost += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            told += len(wanted)
            hit = logits.argmax(dim=1) == wanted
            asked = pack.wanted[0] >= 0
            owner, is_closed = pack.segment[0][asked], pack.closed[0][asked]
            for segment in owner[is_closed].unique():
                right += float(hit[owner == segment].all())
                closed += 1
            openly = [question for question in questions if not question.type]
            if openly and len(written.predictions) < self._answers:
                question = openly[index % len(openly)]
                self._write(reasoner, features, points_m, question, written)
        if not told:
            return {}
        figures = {"text_loss": lost / told}
        if closed:
            figures["closed_accuracy"] = right / closed
        if written.predictions:
            figures["CIDEr"] = written.result()["CIDEr"]
        return figures

    def _write(
        self, reasoner: Reasoner, features: Tensor, points_m: Tensor, question: Question, into: LanguageMetric
    ) -> None:
        device = features.device
        asked = torch.tensor(self._texts.ids(prompt(self._style, [Turn(question.text)])), device=device)
        ids = list(reasoner.generate(features, points_m, asked, _LONGEST_ANSWER, self._texts.end_id))
        into.update(self._texts.text(ids).strip() or "nothing", [question.reference])

    def _forecasts(self, reasoner: Reasoner, queries: QueriesOfIndex) -> dict[str, float]:
        """The mIoU of each horizon over all voxels, and of what the encoder sees now, if it stayed."""
        device = reasoner.reasoning_token.device
        metrics = [
            [OccupancyMetric(Mask.NONE, Convention.SPARSEWORLD) for _ in range(2)]
            for _ in FORECAST_HORIZONS_S
        ]
        free = reasoner.config.forecast_free_class
        planning = torch.tensor(self._texts.planning, device=device)
        done = 0
        for index in self._indices:
            later = [self._sampler.later(index, horizon) for horizon in FORECAST_HORIZONS_S]
            labels = [None if other is None else self._cache.occupancy(other) for other in later]
            if any(label is None for label in labels):
                continue
            seen = queries(index).to(device)
            features, points_m = seen.features, seen.points_m
            prefill = reasoner.prefill(features, points_m, planning)
            steps = reasoner.forecast(features, seen.present(), prefill.occupancy)
            present = class_scores(seen)
            for number, (step, other, label) in enumerate(zip(steps, later, labels, strict=True)):
                assert other is not None
                assert label is not None
                said = forecast_scores(step, free)
                label_from_base = self._sampler.label_from_base(index, other)
                for metric, cloud, of in zip(
                    metrics[number], (step.points_m[0], points_m[0]), (said, present), strict=True
                ):
                    made = future_grid(cloud.float().cpu().numpy(), of, label_from_base, self._rule)
                    metric.update(made, label.semantics, None)
            done += 1
            if done == _FORECASTS:
                break
        if not done:
            return {}
        figures = {}
        for horizon, (forecast, still) in zip(FORECAST_HORIZONS_S, metrics, strict=True):
            figures[f"forecast_mIoU_{horizon:g}s"] = forecast.result()["mIoU"] or 0.0
            figures[f"still_mIoU_{horizon:g}s"] = still.result()["mIoU"] or 0.0
        return figures


def class_scores(present: Queries) -> NDArray[np.float32]:
    """(Q, R, 17) of what the encoder says of one keyframe: the best class's score, and 0 for the others."""
    scores = np.zeros((*present.labels.shape[1:], NUM_CLASSES), np.float32)
    labels, best = present.labels[0, ..., None].cpu().numpy(), present.scores[0, ..., None].cpu().numpy()
    np.put_along_axis(scores, labels, best, axis=2)
    return scores


def forecast_scores(step: ForecastStep, free_class: bool) -> NDArray[np.float32]:
    """(Q, R, 17) of one horizon of one keyframe."""
    logits = step.logits[0].float()
    scores = logits.softmax(dim=-1)[..., :NUM_CLASSES] if free_class else logits.sigmoid()
    array: NDArray[np.float32] = scores.cpu().numpy()
    return array


def future_grid(
    points_m: NDArray[np.float32],
    scores: NDArray[np.float32],
    label_from_base: NDArray[np.float64],
    rule: VoxelRule,
) -> NDArray[np.uint8]:
    """Labels (200, 200, 16) in a future frame of points (Q, R, 3) in base_link at t0."""
    kept = drop_strays(points_m, scores, rule.max_spread_m)
    moved = transform(label_from_base, kept.points_base_m)
    return dense(voxelize(OccupancyPoints(moved, kept.class_scores), rule))


def _gap(path_m: NDArray[np.floating], future_m: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(path_m - future_m, axis=-1).mean())
