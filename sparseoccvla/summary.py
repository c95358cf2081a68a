"""What a drive through the stack came to: read from its bags, by nobody who took part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, EncodedImage, Source
from sparseoccvla.data.bag import BagReader
from sparseoccvla.data.camera_sets import count_camera_sets
from sparseoccvla.data.messages import camera_topics, stamp_ns
from sparseoccvla.images import decode

TRAJECTORIES = "/plan/trajectory"
INFO = "/info"
# Stage: the topic whose provenance tells what the stage took.
STAGES = {
    "encoder": "/occupancy/queries",
    "reasoner": "/reasoning/tokens",
    "planner": "/plan/proposal",
    "guard": TRAJECTORIES,
}


class Identity(Protocol):
    """The part of StackInfo.msg that is read here, from rclpy or from a bag."""

    stage: str
    model_id: str
    trained: bool
    trained_on: str
    backend: str


def identity_notes(infos: Iterable[Identity]) -> list[str]:
    """One line for each stage: what it is, for pictures and tables."""
    return [
        f"{info.stage}: model {info.model_id}, {info.backend}, "
        + (f"trained on {info.trained_on}" if info.trained else "untrained")
        for info in sorted(infos, key=lambda info: info.stage)
    ]


def trust_warning(infos: Iterable[Identity]) -> str:
    """What a reader of the results must know first; empty if every stage is trained."""
    infos = list(infos)
    if any(info.backend == "fake" for info in infos):
        return "FAKE BACKEND: no network behind these results, they show the wiring only"
    untrained = sorted(info.stage for info in infos if not info.trained)
    if untrained:
        return f"UNTRAINED ({', '.join(untrained)}): random weights, the results mean nothing"
    return ""


@dataclass(frozen=True)
class Spread:
    """Milliseconds."""

    p50: float
    p95: float
    max: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        if not seconds:
            return None
        p50, p95, top = np.percentile(np.asarray(seconds) * 1e3, (50, 95, 100)).round(2)
        return cls(float(p50), float(p95), float(top), len(seconds))


@dataclass(frozen=True)
class DriveSummary:
    """Camera sets in, trajectories out."""

    camera_sets: int  # complete ones in the input bag
    trajectories: int  # source MODEL, stamped exactly like one of those sets
    fallbacks: int
    missed_t0_ns: tuple[int, ...]  # sets without a trajectory
    latency_ms: dict[str, Spread | None]  # by stage; "age" is t0 to the guarded trajectory
    model_id: str
    backend: str
    trained: bool

    @property
    def share(self) -> float:
        return self.trajectories / self.camera_sets if self.camera_sets else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": round(self.share, 4)}


def summarize(inputs: Path, outputs: Path) -> DriveSummary:
    """Compare what went in with what came out.

    Raises:
        BagError: a bag can't be read, or the input has no camera.
    """
    complete = set(count_camera_sets(inputs).complete_t0_ns)
    took: dict[str, list[float]] = {stage: [] for stage in STAGES}
    planned: set[int] = set()
    ages: list[float] = []
    fallbacks = 0
    infos: dict[str, Identity] = {}
    with BagReader(outputs) as bag:
        stage_of = {topic: stage for stage, topic in STAGES.items()}
        wanted = [topic for topic in (*stage_of, INFO) if topic in bag.topics]
        for raw in bag.messages(wanted) if wanted else ():
            message = bag.decode(raw)
            if raw.topic == INFO:
                infos[message.stage] = message
                continue
            took[stage_of[raw.topic]].append(message.provenance.execution_s)
            if raw.topic == TRAJECTORIES:
                if message.source == Source.MODEL:
                    planned.add(stamp_ns(message.header.stamp))
                    ages.append(message.camera_age)
                else:
                    fallbacks += 1
    return DriveSummary(
        camera_sets=len(complete),
        trajectories=len(planned & complete),
        fallbacks=fallbacks,
        missed_t0_ns=tuple(sorted(complete - planned)),
        latency_ms={**{stage: Spread.of(times) for stage, times in took.items()}, "age": Spread.of(ages)},
        model_id=", ".join(sorted({info.model_id for info in infos.values()})),
        backend=", ".join(sorted({info.backend for info in infos.values()})),
        trained=bool(infos) and all(info.trained for info in infos.values()),
    )


def pictures_at(bag_path: Path, t0_ns: int, tolerance_ns: int = 60_000_000) -> dict[str, NDArray[np.uint8]]:
    """Each camera's picture nearest to t0, RGB, by name."""
    pictures: dict[str, NDArray[np.uint8]] = {}
    distance: dict[str, int] = {}
    with BagReader(bag_path) as bag:
        cameras = {camera_topics(name)[0]: name for name in CAMERA_NAMES}
        present = [topic for topic in cameras if topic in bag.topics]
        window = (t0_ns - tolerance_ns, t0_ns + tolerance_ns)
        for raw in bag.messages(present, *window) if present else ():
            name, message = cameras[raw.topic], bag.decode(raw)
            apart = abs(stamp_ns(message.header.stamp) - t0_ns)
            if apart < distance.get(name, tolerance_ns + 1):
                distance[name] = apart
                image = EncodedImage(name, t0_ns, message.data.tobytes(), message.format)
                pictures[name] = decode(image)
    return pictures
