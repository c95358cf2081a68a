"""Run the checks and tests of the project group by group, and say how long each took.

    python -m tools.checks check           the gate: no ROS, under a minute
    python -m tools.checks test            everything
    python -m tools.checks unit ros        these groups

All groups run also when one fails; the exit code is 1 if any did. A group fails too when it leaves a
process behind, a ros2 daemon included, or shared memory of a middleware.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.bootstrap.environment import ROOT, outside_environment
from tools.bootstrap.errors import SetupError
from tools.ros_env import ros_environment

PYTEST_NO_TESTS = 5
GRACE_S = 3.0
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
# Of all that lives there, what only ROS middlewares make; others on the machine have files there too.
MIDDLEWARE_FILES = ("fastrtps", "fastdds", "sem.fastrtps", "sem.fastdds", "iceoryx")


@dataclass(frozen=True)
class Group:
    """A program of .venv/bin with its arguments, and whether it runs inside the ROS environment."""

    command: tuple[str, ...]
    ros: bool = False


# Over the cores; four hold the memory down, and a file's tests stay together for their fixtures.
SPREAD = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")

GROUPS = {
    "format": Group(("ruff", "format", "--check")),
    "lint": Group(("ruff", "check")),
    "types": Group(("mypy", "--no-error-summary")),
    "layers": Group(("lint-imports", "--no-logo")),
    "unit": Group(("pytest", "tests/unit", "-m", "not slow", *SPREAD)),
    "contract": Group(("pytest", "tests/contract", "-m", "not slow", *SPREAD)),
    "ros": Group(("pytest", "tests/ros", "-m", "not slow"), ros=True),
    "parity": Group(("pytest", "tests/parity", "-m", "not slow")),
    "slow": Group(("pytest", "tests", "-m", "slow"), ros=True),
}
CHECK = ("format", "lint", "types", "layers", "unit", "contract")
COLLECTIONS = {"check": CHECK, "test": tuple(GROUPS)}


def main() -> int:
    names = [name for word in sys.argv[1:] for name in COLLECTIONS.get(word, (word,))]
    unknown = [name for name in names if name not in GROUPS]
    if unknown or not names:
        print(f"unknown group {unknown}, wanted any of {', '.join([*COLLECTIONS, *GROUPS])}", file=sys.stderr)
        return 2
    adopt_orphans()
    results = []
    for name in names:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        fault = run_group(GROUPS[name])
        results.append((name, time.monotonic() - start, fault))
    print_table(results)
    return int(any(fault for _, _, fault in results))


def run_group(group: Group) -> str:
    """Empty, or why the group failed."""
    try:
        environment = ros_test_environment() if group.ros else outside_environment()
    except SetupError as error:
        return str(error)
    before = middleware_files()
    code = run_program(group.command, environment)
    faults = [] if code == 0 else ["no tests found" if code == PYTEST_NO_TESTS else f"exit code {code}"]
    left = [*end_orphans(), *sorted(middleware_files() - before)]
    if left:
        faults.append("left behind: " + "; ".join(left))
    return ", ".join(faults)


def ros_test_environment() -> dict[str, str]:
    return ros_environment() | {
        # A wrong type in a message field is then an AssertionError with its name, not an abort in C.
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "ROS_LOG_DIR": str(ROOT / "out" / "ros_log"),
    }


def middleware_files() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("*") if path.name.startswith(MIDDLEWARE_FILES)}


def run_program(command: tuple[str, ...], environment: Mapping[str, str]) -> int:
    program = Path(sys.executable).with_name(command[0])
    child = subprocess.Popen([program, *command[1:]], cwd=ROOT, env=environment)
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The terminal has told the child too; give it time to clean up, and the orphans after it.
        child.wait()
        end_orphans()
        raise


def adopt_orphans() -> None:
    """Make processes whose parent died our children, so that what a test leaves behind is seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> list[str]:
    """Kill every child of this process; their command lines. The dead are only buried.

    What is ending by itself, as multiprocessing's resource tracker does, gets a moment for it.
    """
    deadline = time.monotonic() + GRACE_S
    while living_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = []
    while children := living_children():
        for pid, command in children:
            found.append(command)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # its children come to us next
    return found


def living_children() -> list[tuple[int, str]]:
    living = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # ended meanwhile
        state, parent = status[0], int(status[1])
        if parent == os.getpid():
            if state == "Z":
                os.waitpid(int(folder.name), 0)
            else:
                living.append((int(folder.name), command))
    return living


def print_table(results: list[tuple[str, float, str]]) -> None:
    print(f"\n{'group':<10}{'seconds':>9}  result")
    for name, seconds, fault in results:
        print(f"{name:<10}{seconds:>9.1f}  {'FAILED: ' + fault if fault else 'passed'}")
    print(f"{'all':<10}{sum(seconds for _, seconds, _ in results):>9.1f}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
