"""Repeats a live run from what it recorded: the pictures of each set, the history, the reasoning's t0.

A live run depends on how long everything took: which sets were displaced, which token was the newest.
All of that is in its messages, so the same plans can be made again from the input bag, at leisure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparseoccvla.contracts import (
    NS_PER_S,
    CameraSet,
    CameraSlot,
    EncodedImage,
    PlanProposal,
    PlanStatus,
    Reasoning,
)
from sparseoccvla.data.bag import BagError, BagReader
from sparseoccvla.data.messages import camera_topics
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation import bag_messages
from sparseoccvla.evaluation.bag_messages import RecordedSet
from sparseoccvla.evaluation.offline import RigReader, StackSettings
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.geometry import PoseError
from sparseoccvla.pairing import Pairing
from sparseoccvla.stages.encoder import EncoderResult, EncoderStage
from sparseoccvla.stages.planner import Frame, PlanJob, PlannerStage

QUERIES, PROPOSALS = "/occupancy/queries", "/plan/proposal"
_KEPT_S = 4.0  # of pictures and results; the oldest token a plan may use is younger


@dataclass(frozen=True)
class LivePlan:
    """A proposal as it was recorded, and when the planner began it in bag time."""

    proposal: PlanProposal
    began_ns: int


@dataclass(frozen=True)
class Repeated:
    """A live plan and the same plan made again; None and why if it could not be."""

    live: PlanProposal
    again: PlanProposal | None
    history_equal: bool
    reason: str = ""

    @property
    def difference_m(self) -> float:
        """Largest distance between waypoints of the two chosen trajectories."""
        assert self.again is not None
        apart = self.live.trajectory[:, :2] - self.again.trajectory[:, :2]
        return float(np.linalg.norm(apart, axis=1).max())


def read_live(path: Path, model_id: str) -> tuple[list[RecordedSet], dict[int, LivePlan]]:
    """What a live run recorded: its camera sets in order, and its proposals by t0.

    Raises:
        BagError: no readable bag, or one without queries or proposals.
        InputError: another model made it.
    """
    sets: list[RecordedSet] = []
    plans: dict[int, LivePlan] = {}
    with BagReader(path) as bag:
        for topic in (QUERIES, PROPOSALS):
            if topic not in bag.topics:
                raise BagError(f"bag {path} has no {topic}, so it is no recording of the stack's outputs")
        for raw in bag.messages([QUERIES, PROPOSALS]):
            message = bag.decode(raw)
            made_by = message.provenance.model_id
            if made_by != model_id:
                raise InputError(
                    f"{path} was recorded from model {made_by or '(none)'}, this one is {model_id}; "
                    "give the same with --model"
                )
            if raw.topic == QUERIES:
                sets.append(bag_messages.recorded_set(message, raw.stamp_ns))
            else:
                plan = bag_messages.proposal(message)
                began_ns = raw.stamp_ns - round(message.provenance.execution_s * NS_PER_S)
                plans[plan.t0_ns] = LivePlan(plan, began_ns)
    return sorted(sets, key=lambda recorded: recorded.began_ns), plans


class Follower:
    """Makes the plans of a live run again.

    Args:
        models: all three stages.
        settings: of the nodes that recorded.
        sets: as recorded, in order.
        plans: as recorded, by t0.
    """

    def __init__(
        self,
        models: Models,
        settings: StackSettings,
        sets: list[RecordedSet],
        plans: dict[int, LivePlan],
    ) -> None:
        assert models.reasoner is not None
        assert models.planner is not None
        cameras = settings.sync.cameras
        self._encoder = EncoderStage(models.encoder, cameras, settings.memory, settings.odometry)
        self._reasoner = models.reasoner
        self._planner = PlannerStage(models.planner, settings.reasoning, settings.odometry)
        self._offsets_ns = dict(
            zip(
                cameras,
                (round(s * NS_PER_S) for s in settings.sync.stamp_offsets_s or (0.0,) * len(cameras)),
                strict=True,
            )
        )
        self._sets, self._plans = list(sets), plans
        self._topics = {camera_topics(camera)[0]: camera for camera in cameras}
        self._rig = RigReader(cameras)
        self._images: dict[tuple[str, int], EncodedImage] = {}
        self._results: dict[int, EncoderResult] = {}
        self._tokens: dict[int, Reasoning] = {}
        self._due: list[LivePlan] = []

    def run(self, path: Path) -> Iterator[Repeated]:
        """Every recorded plan, made again from the bag that the live run was given.

        Raises:
            BagError: no readable bag.
        """
        with BagReader(path) as bag:
            wanted = [topic for topic in (*self._rig.topics, *self._topics) if topic in bag.topics]
            for raw in bag.messages(wanted):
                yield from self._advance(raw.stamp_ns)
                message = bag.decode(raw)
                if raw.topic in self._topics:
                    self._keep(self._topics[raw.topic], message)
                else:
                    self._rig.take(raw, message, self._encoder)
                    if raw.topic == "/odom":
                        self._planner.add_odometry(*bag_messages.odometry_sample(message))
            yield from self._advance(None)

    def _keep(self, camera: str, message: Any) -> None:
        image = bag_messages.image(camera, message)
        stamp_ns = image.stamp_ns + self._offsets_ns[camera]
        self._images[camera, stamp_ns] = image
        oldest_ns = stamp_ns - round(_KEPT_S * NS_PER_S)
        for key in [key for key in self._images if key[1] < oldest_ns]:
            del self._images[key]

    def _advance(self, until_ns: int | None) -> Iterator[Repeated]:
        """What the live run began before a bag time, with what had come by then; None: all that is left."""
        while self._sets or self._due:
            encode_ns = self._sets[0].began_ns if self._sets else None
            plan_ns = self._due[0].began_ns if self._due else None
            plans_next = plan_ns is not None and (encode_ns is None or plan_ns < encode_ns)
            next_ns = plan_ns if plans_next else encode_ns
            assert next_ns is not None
            if until_ns is not None and next_ns >= until_ns:
                return
            if plans_next:
                yield self._plan(self._due.pop(0))
            else:
                yield from self._encode(self._sets.pop(0))

    def _encode(self, recorded: RecordedSet) -> Iterator[Repeated]:
        live = self._plans.get(recorded.t0_ns)
        slots = []
        for name, state, stamp_ns in recorded.cameras:
            image = self._images.get((name, stamp_ns))
            payload = partial(self._encoder.picture, image) if image is not None else None
            slots.append(CameraSlot(name, state, stamp_ns, payload))
        camera_set = CameraSet(
            recorded.t0_ns, recorded.reference_camera, tuple(slots), after_reset=recorded.memory_cleared
        )
        try:
            result = self._encoder.process(camera_set)
        except (PoseError, InputError) as error:
            if live is not None:
                yield Repeated(live.proposal, None, False, str(error))
            return
        self._results[recorded.t0_ns] = result
        oldest_ns = recorded.t0_ns - round(_KEPT_S * NS_PER_S)
        self._results = {t0: kept for t0, kept in self._results.items() if t0 >= oldest_ns}
        if live is not None:
            self._due.append(live)
            self._due.sort(key=lambda plan: plan.began_ns)

    def _plan(self, live: LivePlan) -> Repeated:
        recorded = live.proposal
        result = self._results[recorded.t0_ns]
        history_equal = result.history_ns == recorded.history_stamps_ns
        token = None
        if recorded.reasoning_t0_ns:
            source = self._results.get(recorded.reasoning_t0_ns)
            if source is None:
                missing = f"no set at {recorded.reasoning_t0_ns} ns was recorded, whose token it used"
                return Repeated(recorded, None, history_equal, missing)
            if recorded.reasoning_t0_ns not in self._tokens:
                self._tokens = {recorded.reasoning_t0_ns: self._reasoner.reason(source.queries).reasoning}
            token = self._tokens[recorded.reasoning_t0_ns]
        job = PlanJob(
            Frame(
                result.queries,
                live.began_ns,
                recorded.stamp_source,
                result.history_ns,
                result.camera_set.complete,
            ),
            Pairing(
                token,
                recorded.reasoning_t0_ns,
                recorded.forecast_t0_ns,
                (recorded.t0_ns - recorded.reasoning_t0_ns) / NS_PER_S if token else float("nan"),
                PlanStatus(recorded.status) & PlanStatus.DEGRADED_NO_REASONING,
                "",
            ),
            self._planner.odometry.ego_state(recorded.t0_ns),
            recorded.command,
        )
        try:
            return Repeated(recorded, self._planner.process(job), history_equal)
        except InputError as error:
            return Repeated(recorded, None, history_equal, str(error))
