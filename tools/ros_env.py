"""The environment of ros2_ws/install/setup.bash for programs that are not shells.

    python -m tools.ros_env COMMAND...     runs a command in it, on a ROS domain of its own

Whoever made the install, colcon or `make setup`, its setup.bash is the one place that knows.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from tools.bootstrap.errors import SetupError

SETUP_BASH = Path(__file__).resolve().parents[1] / "ros2_ws" / "install" / "setup.bash"


def ros_environment(setup_bash: Path = SETUP_BASH) -> dict[str, str]:
    """os.environ after sourcing `setup_bash`, with a free ROS_DOMAIN_ID unless one is set.

    Raises:
        SetupError: there is no such file, or it failed.
    """
    if not setup_bash.is_file():
        raise SetupError(f"{setup_bash} is not there; make it with: make setup")
    # Keeps quoting and line breaks: the variables come as they are, ended by zero bytes.
    script = 'source "$0" && exec env -0'
    done = subprocess.run(
        ["bash", "-c", script, str(setup_bash)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError(f"sourcing {setup_bash} failed: {done.stderr.strip()}")
    pairs = (entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
    environment = {name: value for name, value in pairs if name not in ("_", "SHLVL")}
    environment.setdefault("ROS_DOMAIN_ID", str(free_domain()))
    return environment


def free_domain() -> int:
    """A ROS domain whose first ports nobody on this machine uses, so that graphs do not meet."""
    domains = list(range(1, 102))  # above, the ports lie among the kernel's own
    random.shuffle(domains)
    for domain in domains:
        # DDS: 7400 + 250 per domain, participant i listens on + 10 + 2 i.
        if all(port_is_free(7400 + 250 * domain + 10 + 2 * participant) for participant in range(8)):
            return domain
    raise SetupError("all ROS domains from 1 to 101 are in use on this machine; set ROS_DOMAIN_ID yourself")


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: python -m tools.ros_env COMMAND...")
    try:
        environment = ros_environment()
        os.execvpe(command[0], command, environment)
    except (SetupError, FileNotFoundError) as error:
        sys.exit(f"tools.ros_env: {error}")


if __name__ == "__main__":
    main()
