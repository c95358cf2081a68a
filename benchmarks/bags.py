"""Bag write and replay in MB/s, beside plain rosbags on the same messages in the same run.

    python benchmarks/bags.py --out benchmarks/bags.json

Messages are 704x396-sized JPEG pictures with their CameraInfo, as a demo bag has them. Every way runs
in turn, several times, and the best run of each counts: on a shared machine the rest is other people's.
Replay is everything but the waiting and the publishing: reading and the plan with its clock ticks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

sys.path.insert(0, str(Path(__file__).parents[1]))

from sparseoccvla.config import ReplayConfig
from sparseoccvla.contracts import CAMERA_NAMES, CameraCalibration
from sparseoccvla.data import messages
from sparseoccvla.data.bag import BagReader, BagWriter
from sparseoccvla.data.replay import Span, plan_pass

PICTURE_BYTES = 60_000
RATE_HZ = 4


def make_messages(sets: int) -> list[tuple[str, int, object]]:
    """(topic, stamp, message) of six cameras."""
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(PICTURE_BYTES) for _ in CAMERA_NAMES]
    made: list[tuple[str, int, object]] = []
    for number in range(sets):
        for index, camera in enumerate(CAMERA_NAMES):
            stamp = 10**18 + number * 10**9 // RATE_HZ + index * 8_000_000
            image, info = messages.camera_topics(camera)
            made.append((info, stamp, messages.camera_info(stamp, CameraCalibration.fake(camera))))
            made.append((image, stamp, messages.compressed_image(stamp, camera, pictures[index])))
    return made


def write_ours(made: list, folder: Path) -> None:
    with BagWriter(folder, {}) as bag:
        for topic, stamp, message in made:
            bag.write(topic, stamp, message)


def write_plain(made: list, folder: Path) -> None:
    store = messages.typestore()
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {}
        for topic, stamp, message in made:
            kind = messages.TOPICS[topic][0]
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=store)
            bag.write(connections[topic], stamp, store.serialize_cdr(message, kind))


def read_plain(folder: Path) -> int:
    with Reader(folder) as bag:
        return sum(len(data) for _, _, data in bag.messages())


def read_ours(folder: Path) -> int:
    with BagReader(folder) as bag:
        return sum(len(message.data) for message in bag.messages())


def replay_ours(folder: Path) -> int:
    config = ReplayConfig()
    with BagReader(folder) as bag:
        latched = [topic.name for topic in bag.topics.values() if topic.latched]
        span = Span.of(bag.start_ns, bag.end_ns, config)
        plan = plan_pass(span, config, latched, bag.messages)
        return sum(len(due.message.data) for due in plan if due.message)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(sets: int, repeats: int) -> dict[str, object]:
    made = make_messages(sets)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(repeats):
            for name, write in (("write", write_ours), ("write_plain_rosbags", write_plain)):
                folder = Path(scratch) / f"{name}{number}"
                seconds.setdefault(name, []).append(timed(lambda w=write, f=folder: w(made, f)))
            folder = Path(scratch) / f"write{number}"
            size = read_plain(folder)
            for name, read in (
                ("read", read_ours),
                ("replay", replay_ours),
                ("read_plain_rosbags", read_plain),
            ):
                if read(folder) != size:
                    raise AssertionError(f"{name} lost bytes")
                seconds.setdefault(name, []).append(timed(lambda r=read, f=folder: r(f)))
    best = {name: round(size / 1e6 / min(values), 1) for name, values in seconds.items()}
    return {
        "megabytes": round(size / 1e6, 1),
        "messages": len(made),
        "repeats": repeats,
        "best_mb_per_s": best,
        "ratio_to_plain_rosbags": {
            "write": round(best["write"] / best["write_plain_rosbags"], 3),
            "read": round(best["read"] / best["read_plain_rosbags"], 3),
            "replay": round(best["replay"] / best["read_plain_rosbags"], 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    result = {
        "command": f"python benchmarks/bags.py --sets {options.sets} --repeats {options.repeats}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work",
        "python": platform.python_version(),
        "rosbags": version("rosbags"),
        **measure(options.sets, options.repeats),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
