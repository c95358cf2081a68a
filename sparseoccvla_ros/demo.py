"""`make demo`: drive the whole stack through a synthetic scene and show what came of it.

Makes the drive, plays it through the launch file as any user would, records every output, and judges
the recording: out/demo/ gets the bags, summary.json, dashboard.png and the log of launch.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import numpy as np
import rclpy
import typer
from PIL import Image
from rclpy.executors import ExternalShutdownException
from rclpy.experimental import EventsExecutor
from rclpy.parameter import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparseoccvla.contracts import Source
from sparseoccvla.dashboard import Dashboard, draw
from sparseoccvla.data.bag import BagReader, BagWriter
from sparseoccvla.data.camera_sets import count_camera_sets
from sparseoccvla.data.cli import make_demo_bag
from sparseoccvla.data.messages import stamp_ns
from sparseoccvla.errors import InputError
from sparseoccvla.summary import (
    TRAJECTORIES,
    DriveSummary,
    identity_notes,
    pictures_at,
    summarize,
    trust_warning,
)
from sparseoccvla_ros import convert
from sparseoccvla_ros.recorder import Recorder

LEAST_SHARE = 0.95
_START_S = 120.0  # networks load on a slow machine
_STOP_S = 15.0

console = Console(stderr=True)


@dataclass(frozen=True)
class DemoRun:
    """Where things are."""

    out: Path

    @property
    def inputs(self) -> Path:
        return self.out / "drive"

    @property
    def outputs(self) -> Path:
        return self.out / "results"

    @property
    def log(self) -> Path:
        return self.out / "launch.log"


@contextlib.contextmanager
def _launched(run: DemoRun, arguments: list[str]) -> Iterator[subprocess.Popen]:
    """The launch file, alone in its process group so that nothing of it outlives us."""
    command = ["ros2", "launch", "sparseoccvla", "full_stack.launch.py", *arguments]
    with run.log.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def play_and_record(run: DemoRun, sets: int, seconds: float, arguments: list[str]) -> None:
    """Play the drive through the stack and record what it publishes.

    Raises:
        InputError: launch failed or hangs; the text names its log.
    """
    rclpy.init()
    node = rclpy.create_node("demo_recorder", parameter_overrides=[Parameter("use_sim_time", value=True)])
    recorder = Recorder(node)

    executor = EventsExecutor()
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = Thread(target=spin, daemon=True)
    thread.start()
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with (
            BagWriter(run.outputs, {"made_from": run.inputs.name}) as writer,
            _launched(run, arguments) as launch,
            Progress(*bars, console=console) as progress,
        ):
            recorder.announce(writer)
            task = progress.add_task("starting the nodes", total=sets)
            deadline = time.monotonic() + _START_S + seconds
            while launch.poll() is None:
                recorder.drain(writer)
                done = recorder.counts["/plan/proposal"]
                progress.update(task, completed=done, description="driving" if done else "starting the nodes")
                if time.monotonic() > deadline:
                    raise InputError(
                        f"the stack was not done after {_START_S + seconds:.0f} s; see {run.log}"
                    )
                time.sleep(0.1)
            recorder.drain(writer)
            if launch.returncode != 0:
                raise InputError(f"ros2 launch ended with {launch.returncode}; see {run.log}")
    finally:
        rclpy.try_shutdown()
        thread.join(5.0)


def make_dashboard(run: DemoRun) -> Path:
    """The picture of one moment in the middle of the recorded drive."""
    found: dict[str, dict[int, Any]] = {}
    infos = {}
    with BagReader(run.outputs) as bag:
        wanted = {
            "/occupancy/voxels": "occupancy",
            "/plan/proposal": "proposal",
            TRAJECTORIES: "trajectory",
            "/reasoning/text": "text",
        }
        for raw in bag.messages([t for t in (*wanted, "/info") if t in bag.topics]):
            message = bag.decode(raw)
            if raw.topic == "/info":
                infos[message.stage] = message
            elif raw.topic != TRAJECTORIES or message.source == Source.MODEL:
                found.setdefault(wanted[raw.topic], {})[stamp_ns(message.header.stamp)] = message
    shared = sorted(set(found.get("trajectory", {})) & set(found.get("occupancy", {})))
    if not shared:
        raise InputError(f"{run.outputs} has no moment with both occupancy and a trajectory; see {run.log}")
    t0_ns = shared[len(shared) // 2]
    said = [message for stamp, message in sorted(found.get("text", {}).items()) if stamp <= t0_ns]
    board = Dashboard(
        cameras=pictures_at(run.inputs, t0_ns),
        occupancy=convert.occupancy(found["occupancy"][t0_ns]),
        proposal=convert.proposal(found["proposal"][t0_ns]),
        trajectory=convert.trajectory(found["trajectory"][t0_ns]),
        text=said[-1].text if said else "",
        notes=identity_notes(infos.values()),
        warning=trust_warning(infos.values()),
    )
    path = run.out / "dashboard.png"
    Image.fromarray(np.ascontiguousarray(draw(board))).save(path)
    return path


def _table(summary: DriveSummary) -> Table:
    trust = "trained" if summary.trained else "untrained: the numbers below are about the plumbing"
    table = Table(title=f"model {summary.model_id}, {summary.backend}, {trust}", title_justify="left")
    for column in ("stage", "n", "p50 [ms]", "p95 [ms]", "max [ms]"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, spread in summary.latency_ms.items():
        if spread is not None:
            name = "camera to trajectory" if stage == "age" else stage
            table.add_row(
                name, str(spread.n), *(f"{value:.1f}" for value in (spread.p50, spread.p95, spread.max))
            )
    return table


def demo(
    out: Annotated[Path, typer.Option(help="Folder for bags, summary and picture.")] = Path("out/demo"),
    seconds: Annotated[float, typer.Option(min=3.0, help="Length of the drive.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of the drive.")] = 0,
    rate: Annotated[float, typer.Option(min=0.5, max=12.0, help="Camera sets per second.")] = 4.0,
    backend: Annotated[str, typer.Option(help="torch, onnxruntime, tensorrt or fake.")] = "torch",
    model: Annotated[str, typer.Option(help="Model to drive with.")] = "tiny",
) -> None:
    """Drive through a synthetic scene; exit 0 if at least 95 % of the camera sets got a trajectory."""
    start_s = time.monotonic()
    run = DemoRun(out.resolve())
    run.out.mkdir(parents=True, exist_ok=True)
    # Somebody else's nodes on this machine must not meet ours.
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(10, 99)))
    make_demo_bag(run.inputs, seconds, seed, rate)
    sets = len(count_camera_sets(run.inputs).complete_t0_ns)
    arguments = [f"bag:={run.inputs}", "exit_with_bag:=true", f"backend:={backend}", f"model:={model}"]
    play_and_record(run, sets, seconds, arguments)
    summary = summarize(run.inputs, run.outputs)
    report = {
        **summary.as_dict(),
        "wall_s": round(time.monotonic() - start_s, 1),
        "seed": seed,
        "rate_hz": rate,
    }
    (run.out / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
    picture = make_dashboard(run)
    console.print(_table(summary))
    good = summary.share >= LEAST_SHARE
    console.print(
        f"{summary.trajectories} of {summary.camera_sets} camera sets got a trajectory "
        f"({summary.share:.0%}), {summary.fallbacks} fallbacks, {report['wall_s']} s in all"
        + ("" if good else f"; wanted at least {LEAST_SHARE:.0%}, see {run.log}"),
        style="green" if good else "red",
    )
    console.print(f"picture {picture}\nsummary {run.out / 'summary.json'}")
    sys.exit(0 if good else 1)


def main() -> int:
    try:
        typer.run(demo)
    except InputError as error:
        console.print(f"demo: {error}", style="red", highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
