"""Last camera of a set to guarded trajectory, through the launched graph over DDS.

    make bench      or this one alone: python -m tools.ros_env python benchmarks/latency.py

With the fake backend this is what the plumbing costs: decoding, conversion, four processes, four hops.
The clock runs from the publish call of the last of six pictures to the arrival of the trajectory here,
so one more hop is counted than a controller would see.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.experimental import EventsExecutor
from sparseoccvla_msgs.msg import OccupancyQueries, PlannedTrajectory, PlanProposal, StackInfo

from benchmarks.measuring import age_ms
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.rig import FIRING_S, Rig

_WARM_UP = 10
STAGES = {"encoder", "planner", "reasoner"}


def spread(milliseconds: list[float]) -> dict[str, float | int]:
    p50, p95, p99, top = np.percentile(milliseconds, (50, 95, 99, 100)).round(2).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": top, "n": len(milliseconds)}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _spin(executor) -> None:
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()


def measure(sets: int, rate_hz: float) -> dict:
    rclpy.init()
    rig = Rig()
    came: dict[str, dict[int, float]] = {"queries": {}, "proposal": {}, "trajectory": {}}
    took: dict[str, list[float]] = {"encoder": [], "planner": [], "guard": []}
    stages_up: set[str] = set()

    def listen(kind: type, topic: str, name: str, stage: str) -> None:
        def on_message(message) -> None:
            came[name].setdefault(convert.time_ns(message.header.stamp), time.monotonic())
            took[stage].append(message.provenance.execution_s * 1e3)

        rig.create_subscription(kind, topic, on_message, qos.STREAM)

    listen(OccupancyQueries, "occupancy/queries", "queries", "encoder")
    listen(PlanProposal, "plan/proposal", "proposal", "planner")
    listen(PlannedTrajectory, "plan/trajectory", "trajectory", "guard")
    rig.create_subscription(StackInfo, "info", lambda m: stages_up.add(m.stage), qos.LATCHED_ALL)
    executor = EventsExecutor()
    executor.add_node(rig)
    Thread(target=_spin, args=(executor,), daemon=True).start()
    deadline = time.monotonic() + 120
    while not stages_up >= STAGES:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {stages_up} came up in 120 s")
        time.sleep(0.1)
    time.sleep(2.0)
    # The first sets warm up caches.
    sent = dict(list(rig.drive(sets + _WARM_UP, rate_hz).items())[_WARM_UP:])
    time.sleep(1.0)
    rclpy.try_shutdown()
    # A set is sent when its last camera fires, so long after t0.
    t0_s = {t0: start - max(FIRING_S.values()) for t0, start in sent.items()}
    answers = sorted(came["trajectory"][t0] for t0 in set(sent) & set(came["trajectory"]))
    return {
        "plans_per_s": round((len(answers) - 1) / (answers[-1] - answers[0]), 2),
        "age_of_followed_ms": spread(age_ms(t0_s, came["trajectory"])),
        "camera_to_ms": {
            name: spread([(stamps[t0] - start) * 1e3 for t0, start in sent.items() if t0 in stamps])
            for name, stamps in came.items()
        },
        "inside_stage_ms": {stage: spread(times[_WARM_UP:]) for stage, times in took.items()},
        "sets": len(sent),
        "answered": len(set(sent) & set(came["trajectory"])),
    }


def _interruptible() -> None:
    """A job in the background ignores SIGINT, and so would launch, which then starts ended nodes again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def launched(arguments: list[str]) -> Iterator[None]:
    """The stack without its visualizer, while the block runs."""
    launch = subprocess.Popen(
        ["ros2", "launch", "sparseoccvla", "full_stack.launch.py", "visualizer:=false",
         "camera_reliability:=reliable", *arguments],
        stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_interruptible,
    )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(launch.pid, signal.SIGINT)
        launch.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("latency.json"))
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--backend", default="fake")
    args = parser.parse_args()
    with launched([f"backend:={args.backend}"]):
        result = measure(args.sets, args.rate)
    report = {
        "what": "last camera of a set published -> guarded trajectory received",
        "command": "python benchmarks/latency.py " + " ".join(sys.argv[1:]),
        "backend": args.backend,
        "pictures": "6 x 704x396 JPEG",
        "rate_hz": args.rate,
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "rmw": os.environ.get("RMW_IMPLEMENTATION", "default"),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "load_before": round(os.getloadavg()[0], 2),
        **result,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
