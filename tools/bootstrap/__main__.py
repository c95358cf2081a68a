"""`make setup`: from a bare machine to a shell where everything runs.

    python -m tools.bootstrap              all of it
    python -m tools.bootstrap --no-ros     what `make check` needs: the virtual environment

Each step leaves a stamp with a hash of what it was made from, and is skipped while that stays the same.
Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys

from tools.bootstrap import prefix
from tools.bootstrap.environment import ROOT, ensure_environment, fingerprint, say
from tools.bootstrap.errors import SetupError
from tools.bootstrap.runtime import ensure_pip_runtime, jazzy_is_sourced


def main() -> int:
    parser = argparse.ArgumentParser(prog="make setup", description=__doc__)
    parser.add_argument("--no-ros", action="store_true", help="only the virtual environment")
    options = parser.parse_args()
    # Two at once would install over each other: the second waits for the first.
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        python = ensure_environment(os.environ.get("TORCH_INDEX", ""))
        if options.no_ros:
            return 0
        if jazzy_is_sourced():
            colcon_build()
        elif prefix.ensure(ensure_pip_runtime(python)):
            say(f"make setup: done. For a shell with ROS 2: source {prefix.INSTALL}/setup.bash")
    except (SetupError, subprocess.SubprocessError, OSError) as error:
        say(f"make setup: {error}")
        return 1
    return 0


def colcon_build() -> None:
    """Build both packages the stock way, with the sourced ROS."""
    prefix.remove_own_install()
    stamp = prefix.INSTALL / prefix.STAMP
    wanted = fingerprint(prefix.inputs(), os.environ.get("AMENT_PREFIX_PATH", ""))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    command = ["colcon", "build", "--symlink-install"]
    try:
        done = subprocess.run(command, cwd=ROOT / "ros2_ws", check=False)
    except FileNotFoundError:
        raise SetupError(
            "ROS 2 Jazzy is sourced, but `colcon` is not on PATH: "
            "sudo apt install python3-colcon-common-extensions"
        ) from None
    if done.returncode:
        raise SetupError(f"`{' '.join(command)}` in {ROOT / 'ros2_ws'} failed; its own words stand above")
    stamp.write_text(wanted)


if __name__ == "__main__":
    sys.exit(main())
