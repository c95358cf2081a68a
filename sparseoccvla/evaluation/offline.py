"""The cores of the four nodes around one clock: bag time. No threads, no ROS, equal bags give equal bytes.

Computing takes no time here: a set is encoded the moment it is complete, its token is there at once, and
the plan is judged in the same instant. What a live run adds is latency; `follow.py` repeats that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml
from numpy.typing import NDArray

from sparseoccvla.config import (
    ConfigError,
    GuardConfig,
    MemoryConfig,
    OdometryConfig,
    ReasonerNodeConfig,
    ReasoningConfig,
    SynchronizerConfig,
    from_mapping,
)
from sparseoccvla.contracts import (
    NS_PER_S,
    CameraSet,
    DrivingCommand,
    PlannedTrajectory,
    PlanProposal,
)
from sparseoccvla.data.bag import BagError, BagReader, RawMessage
from sparseoccvla.data.messages import BASE_FRAME, camera_topics
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation import bag_messages
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.geometry import PoseError
from sparseoccvla.guard import Guard
from sparseoccvla.odometry import OdometryBuffer
from sparseoccvla.stages.encoder import EncoderStage
from sparseoccvla.stages.planner import Frame, PlanJob, PlannerStage
from sparseoccvla.stages.reasoner import ReasonerStage
from sparseoccvla.synchronizer import Synchronizer

TAIL_S = 1.0  # the clock goes on after the last message, so that deadlines still fire
_EVERY_FRAME_HZ = 50.0


@dataclass(frozen=True)
class StackSettings:
    """Settings of the nodes that shape what comes out. Frames wait for their own reasoning."""

    sync: SynchronizerConfig = field(default_factory=SynchronizerConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    odometry: OdometryConfig = field(default_factory=OdometryConfig)
    reasoning: ReasoningConfig = field(default_factory=lambda: ReasoningConfig(policy="same_frame"))
    reasoner: ReasonerNodeConfig = field(
        default_factory=lambda: ReasonerNodeConfig(max_rate_hz=_EVERY_FRAME_HZ)
    )
    guard: GuardConfig = field(default_factory=GuardConfig)


def read_settings(path: Path) -> StackSettings:
    """The settings of a ROS parameter file, as launch takes it; those of other parts are left alone.

    Raises:
        ConfigError: not a parameter file, or an impossible value.
    """
    try:
        nodes = yaml.safe_load(path.read_text())
        parameters = {
            name: value for node in nodes.values() for name, value in node["ros__parameters"].items()
        }
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no ROS parameter file ({error}); config/vehicle/nuscenes.yaml is one"
        ) from error
    settings = StackSettings()
    hints = get_type_hints(StackSettings)
    for part in (item.name for item in fields(StackSettings)):
        prefix = f"{part}."
        given = {n.removeprefix(prefix): v for n, v in parameters.items() if n.startswith(prefix)}
        if given:
            # What is not given keeps the offline default, which may differ from the live one.
            chosen = from_mapping(hints[part], given, f"{path}: {part}")
            settings = replace(
                settings,
                **{part: replace(getattr(settings, part), **{n: getattr(chosen, n) for n in given})},
            )
    return settings


@dataclass(frozen=True)
class Published:
    """What the stack would have published, and when."""

    stamp_ns: int  # bag time
    content: PlanProposal | PlannedTrajectory


class RigReader:
    """Feeds what every runner needs of a bag besides pictures: calibration, odometry, command."""

    def __init__(self, cameras: Collection[str]) -> None:
        self._info_topics = {camera_topics(camera)[1]: camera for camera in cameras}
        self._base_from: dict[str, NDArray[np.float64]] = {}
        self._waiting: dict[str, Any] = {}

    @property
    def topics(self) -> list[str]:
        return ["/tf_static", "/odom", "/command", *self._info_topics]

    def take(self, raw: RawMessage, message: Any, encoder: EncoderStage) -> DrivingCommand | None:
        """Hand a message on to the encoder stage; a command comes back."""
        if raw.topic == "/tf_static":
            for (parent, child), pose in bag_messages.transforms(message).items():
                if parent == BASE_FRAME:
                    self._base_from[child] = pose
            for camera, info in list(self._waiting.items()):
                self._calibrate(camera, info, encoder)
        elif raw.topic == "/odom":
            encoder.add_odometry(*bag_messages.odometry_sample(message))
        elif raw.topic == "/command":
            return bag_messages.command(message)
        elif raw.topic in self._info_topics:
            self._calibrate(self._info_topics[raw.topic], message, encoder)
        return None

    def _calibrate(self, camera: str, info: Any, encoder: EncoderStage) -> None:
        pose = self._base_from.get(info.header.frame_id)
        if pose is None:
            self._waiting[camera] = info  # its transform may still come
            return
        self._waiting.pop(camera, None)
        encoder.set_calibration(bag_messages.calibration(camera, info, pose))


class OfflineStack:
    """Messages of a bag in, proposals and guarded trajectories out.

    Args:
        models: all three stages.
        settings: of the nodes.
    """

    def __init__(self, models: Models, settings: StackSettings) -> None:
        assert models.reasoner is not None
        assert models.planner is not None
        cameras = settings.sync.cameras
        self.encoder = EncoderStage(models.encoder, cameras, settings.memory, settings.odometry)
        self.reasoner = ReasonerStage(models.reasoner, settings.reasoner.max_rate_hz)
        self.planner = PlannerStage(models.planner, settings.reasoning, settings.odometry)
        self.guard = Guard(settings.guard)
        self.motion = OdometryBuffer(settings.odometry)
        self.synchronizer = Synchronizer(settings.sync)
        self.rig = RigReader(cameras)
        self.refused: list[tuple[int, str]] = []  # t0 [ns] of a set, and why it gave no plan
        self.command_sources: set[str] = set()
        self._models = models
        self._pictures = {camera_topics(camera)[0]: camera for camera in cameras}
        self._tick_ns = round(NS_PER_S / settings.guard.rate_hz)
        self._next_tick_ns: int | None = None

    def run(self, path: Path) -> Iterator[Published]:
        """Everything that is published over a bag, in order.

        Raises:
            BagError: no readable bag, or one without pictures of the first camera.
        """
        with BagReader(path) as bag:
            wanted = [topic for topic in (*self.rig.topics, *self._pictures) if topic in bag.topics]
            first = next(iter(self._pictures))
            if first not in wanted:
                raise BagError(
                    f"bag {path} has no pictures on {first}; it has {', '.join(sorted(bag.topics))}"
                )
            for raw in bag.messages(wanted):
                yield from self._advance(raw.stamp_ns)
                yield from self._take(raw, bag.decode(raw))
            yield from self._advance(bag.end_ns + round(TAIL_S * NS_PER_S))

    def _take(self, raw: RawMessage, message: Any) -> Iterator[Published]:
        if raw.topic in self._pictures:
            image = bag_messages.image(self._pictures[raw.topic], message)
            picture = partial(self.encoder.picture, image)
            sets = self.synchronizer.add(image.camera, image.stamp_ns, picture, raw.stamp_ns)
            yield from self._encode(sets, raw.stamp_ns)
            return
        command = self.rig.take(raw, message, self.encoder)
        if command is not None:
            self.planner.set_command(command)
            self.command_sources.add(command.source)
        if raw.topic == "/odom":
            sample = bag_messages.odometry_sample(message)
            self.planner.add_odometry(*sample)
            self.motion.add(*sample)

    def _advance(self, until_ns: int) -> Iterator[Published]:
        """Everything that timers do up to and at a time, in order."""
        if self._next_tick_ns is None:
            self._next_tick_ns = until_ns
        while True:
            deadline_ns = self.synchronizer.next_deadline_ns()
            due_ns = min(self._next_tick_ns, deadline_ns if deadline_ns is not None else self._next_tick_ns)
            if due_ns > until_ns:
                break
            if due_ns == deadline_ns:
                yield from self._encode(self.synchronizer.poll(due_ns), due_ns)
            if due_ns == self._next_tick_ns:
                self._next_tick_ns += self._tick_ns
                yield from self._plan(self.planner.poll(due_ns), due_ns)
                braking = self.guard.poll(due_ns, self.motion.latest_ego_state(due_ns))
                if braking is not None:
                    yield Published(due_ns, braking)

    def _encode(self, sets: list[CameraSet], now_ns: int) -> Iterator[Published]:
        info = self._models.encoder.info
        for camera_set in sets:
            try:
                result = self.encoder.process(camera_set)
            except (PoseError, InputError) as error:
                self.refused.append((camera_set.t0_ns, str(error)))
                continue
            frame = Frame(
                result.queries,
                now_ns,
                camera_set.reference_camera,
                result.history_ns,
                result.camera_set.complete,
            )
            yield from self._plan(self.planner.add_frame(frame, info.stage_id, now_ns), now_ns)
            if self.reasoner.offer(result.queries, info.stage_id):
                reasoning = self.reasoner.process(result.queries).reasoning
                yield from self._plan(self.planner.add_reasoning(reasoning, info.model_id, now_ns), now_ns)

    def _plan(self, job: PlanJob | None, now_ns: int) -> Iterator[Published]:
        if job is None:
            return
        try:
            proposal = self.planner.process(job)
        except InputError as error:
            self.refused.append((job.frame.queries.t0_ns, str(error)))
            return
        yield Published(now_ns, proposal)
        judged = self.guard.propose(proposal, self.motion.latest_ego_state(now_ns), now_ns)
        if judged is not None:
            yield Published(now_ns, judged)
