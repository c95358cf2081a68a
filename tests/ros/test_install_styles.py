"""`ros2 run`, `ros2 launch` and the command line work from each kind of install, whatever python3 is first.

The foreign Python is the base of the virtual environment: it has rclpy through PYTHONPATH, as the
system's python3 has on a machine with ROS, but neither numpy nor torch.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP_INSTALL = ROOT / "ros2_ws" / "install"
FOREIGN = Path(os.path.realpath(sys.executable))
PACKAGED = ("launch", "config", "models", "resource", "sparseoccvla", "sparseoccvla_ros", "tools/bin")
MODULE = "sparseoccvla_ros.guard_node"

pytestmark = pytest.mark.slow


def copy_source(target: Path) -> Path:
    """What setup.py packages, and a link to the virtual environment where `make setup` makes it."""
    for name in PACKAGED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ("package.xml", "setup.py", "setup.cfg"):
        shutil.copy(ROOT / path, target)
    (target / ".venv").symlink_to(sys.prefix)
    return target


def colcon_build(workspace: Path, *options: str) -> None:
    """Run by the foreign Python, whose path the installed scripts get. Messages come from our prefix."""
    script = "import sys; from colcon_core.command import main; sys.exit(main())"
    command = [FOREIGN, "-c", script, "build", "--packages-select", "sparseoccvla", *options]
    path = os.pathsep.join([*site.getsitepackages(), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        command,
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module", params=["pip", "colcon", "colcon --symlink-install"])
def install(request, tmp_path_factory):
    """(setup.bash to source, source tree) of an install of each kind."""
    if request.param == "pip":
        return PIP_INSTALL / "setup.bash", ROOT
    workspace = tmp_path_factory.mktemp("workspace")
    source = copy_source(workspace / "src" / "sparseoccvla")
    colcon_build(workspace, *request.param.split()[1:])
    return workspace / "install" / "setup.bash", source


@pytest.fixture(scope="module")
def foreign_first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("python", "python3"):
        (folder / name).symlink_to(FOREIGN)
    return folder


class Shell:
    """Commands after `source setup.bash`, with the foreign Python first on PATH."""

    def __init__(self, setup_bash: Path, foreign: Path) -> None:
        # Quotes hold the paths together; $0 and $@ are the command.
        self.script = f'source "{setup_bash}"; export PATH="{foreign}:$PATH"; exec "$0" "$@"'

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", self.script, *command],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        # Whoever runs the tests as a background job hands down that SIGINT is ignored.
        listening = ["env", "--default-signal=INT"]
        return subprocess.Popen([*listening, "bash", "-c", self.script, *command], start_new_session=True)


@pytest.fixture
def shell(install, foreign_first):
    return Shell(install[0], foreign_first)


def test_the_foreign_python_is_first_and_has_no_torch(shell):
    done = shell.run("python3", "-c", "import torch")
    assert "No module named 'torch'" in done.stderr


def test_the_command_line_runs_under_it(shell):
    done = shell.run("sparseoccvla", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: sparseoccvla" in done.stdout


def test_every_executable_is_there(shell):
    done = shell.run("ros2", "pkg", "executables", "sparseoccvla")
    names = set(re.findall(r"^sparseoccvla (\w+)$", done.stdout, re.MULTILINE))
    assert {"encoder_node", "reasoner_node", "planner_node", "guard_node", "replay_node"} <= names


def test_launch_finds_its_file(shell):
    done = shell.run("ros2", "launch", "sparseoccvla", "full_stack.launch.py", "--show-args")
    assert done.returncode == 0, done.stderr
    assert "'bag'" in done.stdout


def test_a_node_runs_under_the_python_of_the_virtual_environment(shell, install):
    process = shell.start("ros2", "run", "sparseoccvla", "guard_node")
    try:
        command = wait_for_command(process.pid)
        # The pip install's script starts with that Python; the others go through the foreign one.
        assert Path(command[0]) in (Path(sys.prefix, "bin/python"), install[1] / ".venv/bin/python"), command
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) is not None


def wait_for_command(group: int) -> list[str]:
    """Command line of the process in this group that imported the node's module."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) != group:
                    continue
                command = (folder / "cmdline").read_text().split("\0")
                loaded = (folder / "maps").read_text()
            except OSError:
                continue
            node = any("guard_node" in word for word in command) and Path(command[1]).name != "ros2"
            if node and "_rclpy_pybind11" in loaded:
                return command
        time.sleep(0.05)
    return pytest.fail("no guard_node was seen to run rclpy within 20 s")


def test_the_variable_names_another_python(shell, tmp_path):
    probe = tmp_path / "probe"
    probe.write_text('#!/bin/sh\necho "probe: $@"\n')
    probe.chmod(0o755)
    done = shell.run(
        "ros2", "run", "sparseoccvla", "guard_node", "--ros-args", SPARSEOCCVLA_PYTHON=str(probe)
    )
    assert done.stdout.strip() == f"probe: -P -m {MODULE} --ros-args"


def test_without_a_virtual_environment_the_error_says_what_to_do(shell, install):
    _, source = install
    if source == ROOT:
        pytest.skip("this tree's own virtual environment runs the tests")
    link = source / ".venv"
    link.rename(source / "away")
    try:
        done = shell.run("ros2", "run", "sparseoccvla", "guard_node")
    finally:
        (source / "away").rename(link)
    assert done.returncode != 0
    assert "does not have numpy" in done.stderr
    assert f"`make setup` in {source}" in done.stderr
