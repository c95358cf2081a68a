"""ros2_ws/install of a machine without ROS: the ament prefix that `colcon build` would make elsewhere.

Python code, launch files, configuration and models are links to the tree, as in
`colcon build --symlink-install`; only the messages are compiled.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.bootstrap import messages
from tools.bootstrap.environment import ROOT, fingerprint, outside_environment, say
from tools.bootstrap.errors import SetupError
from tools.bootstrap.messages import add_to_index, python_folder
from tools.bootstrap.runtime import Runtime

INSTALL = ROOT / "ros2_ws" / "install"
MESSAGES = ROOT / "ros2_ws" / "src" / "sparseoccvla_msgs"
MARKER = "SPARSEOCCVLA_PIP_INSTALL"
STAMP = ".setup-stamp"
# colcon reads this file and refuses a folder made with another layout than its own two.
COLCON_LAYOUT = ".colcon_install_layout"
LINKED_FOLDERS = ("launch", "config", "models")
PACKAGES = ("sparseoccvla", "sparseoccvla_ros")

MARKER_TEXT = """\
Made by `make setup` for a machine without ROS; `make setup` keeps it up to date.
To build with colcon instead, on a machine with ROS 2 Jazzy sourced:
    rm -r {install} && cd {workspace} && colcon build
To come back: rm -r {install} {workspace}/build {workspace}/log && make setup, in a shell without ROS.
"""

SCRIPT = """\
#!{python}
import sys

from {module} import {function}

# Guarded: worker processes import this file again.
if __name__ == "__main__":
    sys.exit({function}())
"""

SETUP_BASH = """\
# Made by `make setup`: the ROS 2 environment of this tree. Do: source {install}/setup.bash

if [ "${{ROS_DISTRO:-jazzy}}" != jazzy ]; then
  echo "sparseoccvla: ROS 2 $ROS_DISTRO is sourced in this shell, wanted jazzy or none; open a new shell" >&2
  return 1
fi
_sparseoccvla_prepend() {{
  case ":${{!1-}}:" in
    *":$2:"*) ;;
    *) export "$1=$2${{!1:+:${{!1-}}}}" ;;
  esac
}}
_sparseoccvla_default() {{
  if [ -z "${{!1-}}" ]; then export "$1=$2"; fi
}}
{prepends}
unset -f _sparseoccvla_prepend
export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
# Yours stay if you have set them.
{defaults}
unset -f _sparseoccvla_default
if [ "$RMW_IMPLEMENTATION" = rmw_fastrtps_cpp ]; then
  echo "sparseoccvla: RMW_IMPLEMENTATION is rmw_fastrtps_cpp, which cannot carry the messages of this" \\
    "pip-only install; use rmw_cyclonedds_cpp or rmw_fastrtps_dynamic_cpp" >&2
fi
"""


@dataclass(frozen=True)
class Description:
    """What setup.py says about the package."""

    version: str
    console_scripts: dict[str, tuple[str, str]]  # name: (module, function)


def ensure(runtime: Runtime) -> bool:
    """Make the prefix if it is not there or was made from something else; whether it had to.

    Raises:
        SetupError: ros2_ws/install is not ours, or a tool failed.
    """
    refuse_foreign_install()
    stamp = INSTALL / STAMP
    wanted = fingerprint(inputs(), str(INSTALL), str(runtime))
    if stamp.is_file() and stamp.read_text() == wanted:
        return False
    say("make setup: building the messages and ros2_ws/install")
    make(runtime)
    stamp.write_text(wanted)
    return True


def inputs() -> list[Path]:
    """Everything that the installed packages are made from, except what is linked."""
    interfaces = [path for kind in ("msg", "srv", "action") for path in MESSAGES.glob(f"{kind}/*.{kind}")]
    builder = [path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".h")]
    manifests = [
        MESSAGES / "package.xml",
        MESSAGES / "CMakeLists.txt",
        ROOT / "package.xml",
        ROOT / "setup.py",
    ]
    return [*interfaces, *builder, *manifests]


def remove_own_install(install: Path = INSTALL) -> None:
    """Make room for colcon by removing what `make setup` made without ROS, and only that."""
    if (install / MARKER).is_file():
        say(f"make setup: ROS 2 is sourced now; {install}, made without it, gives way to colcon's")
        shutil.rmtree(install)


def refuse_foreign_install(install: Path = INSTALL) -> None:
    """Raise `SetupError` if `install` holds something that `make setup` did not make."""
    if install.is_dir() and any(install.iterdir()) and not (install / MARKER).is_file():
        layout = install / COLCON_LAYOUT
        who = "colcon" if layout.is_file() else "something else than `make setup`"
        raise SetupError(
            f"{install} was made by {who}, and this shell has no ROS 2 Jazzy to go on with it. "
            f"Source ROS (source /opt/ros/jazzy/setup.bash) and run colcon as before, or let `make setup` "
            f"make a pip-only one: rm -r {install}"
        )


def describe_package(python: Path) -> Description:
    """Version and console scripts by running setup.py up to the point where it would build."""
    code = (
        "import json; from setuptools import Distribution; import distutils.core as core; "
        "d = core.run_setup('setup.py', stop_after='init'); "
        "print(json.dumps([d.get_version(), d.entry_points['console_scripts']]))"
    )
    text = messages.run_tool([str(python), "-c", code], outside_environment(), "reading setup.py")
    version, scripts = json.loads(text.splitlines()[-1])
    parsed = {}
    for line in scripts:
        name, target = (part.strip() for part in line.split("="))
        module, function = target.split(":")
        parsed[name] = (module, function)
    return Description(version, parsed)


def make(runtime: Runtime, install: Path = INSTALL) -> None:
    """Build everything beside `install`, then put it in its place: a failure leaves the old one.

    Raises:
        SetupError: `install` is not ours, or a tool failed.
    """
    refuse_foreign_install(install)
    staging = install.with_name(f".install.{os.getpid()}")
    try:
        work = staging / "work"
        work.mkdir(parents=True)
        messages.build(MESSAGES, runtime, staging, work)
        shutil.rmtree(work)
        install_package(describe_package(runtime.python), runtime, staging)
        (staging / "setup.bash").write_text(setup_bash(runtime, install))
        (staging / COLCON_LAYOUT).write_text("made by make setup\n")
        (staging / "COLCON_IGNORE").touch()
        (staging / MARKER).write_text(MARKER_TEXT.format(install=install, workspace=install.parent))
        shutil.rmtree(install, ignore_errors=True)
        staging.rename(install)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def install_package(description: Description, runtime: Runtime, prefix: Path) -> None:
    """The Python package `sparseoccvla` with its executables, metadata and `ros2` in an ament prefix."""
    python_dir = prefix / python_folder()
    share = prefix / "share" / "sparseoccvla"
    share.mkdir(parents=True)
    for package in PACKAGES:
        (python_dir / package).symlink_to(ROOT / package)
    for folder in LINKED_FOLDERS:
        (share / folder).symlink_to(ROOT / folder)
    (share / "package.xml").symlink_to(ROOT / "package.xml")
    add_to_index(prefix, "packages", "sparseoccvla")
    write_metadata(python_dir, "sparseoccvla", description.version)
    python = runtime.python
    for name, (module, function) in description.console_scripts.items():
        write_script(prefix / "lib" / "sparseoccvla" / name, python, module, function)
    write_script(prefix / "bin" / "sparseoccvla", python, "sparseoccvla_ros.interpreter", "command_line")
    if not (runtime.prefix / "bin" / "ros2").exists():
        write_script(prefix / "bin" / "ros2", python, "ros2cli.cli", "main")
    if not (runtime.python_dir / "ros2launch").exists():
        shutil.copy(
            Path(__file__).with_name("ros2_launch_verb.py"), python_dir / "sparseoccvla_ros2_launch.py"
        )
        write_metadata(
            python_dir,
            "sparseoccvla_ros2_launch",
            description.version,
            "[ros2cli.command]\nlaunch = sparseoccvla_ros2_launch:LaunchCommand\n",
        )


def write_script(path: Path, python: Path, module: str, function: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT.format(python=python, module=module, function=function))
    path.chmod(0o755)


def write_metadata(python_dir: Path, name: str, version: str, entry_points: str = "") -> None:
    folder = python_dir / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points:
        (folder / "entry_points.txt").write_text(entry_points)


def setup_bash(runtime: Runtime, install: Path) -> str:
    """The one place where the environment of the pip runtime is written down."""
    # Each is put in front, so the last comes first.
    prepends = [
        ("PATH", runtime.python.parent),
        ("PATH", install / "bin"),
        ("LD_LIBRARY_PATH", runtime.prefix / "lib"),
        ("PYTHONPATH", runtime.python_dir),
        ("PYTHONPATH", install / python_folder()),
        ("AMENT_PREFIX_PATH", runtime.prefix),
        ("AMENT_PREFIX_PATH", install),
    ]
    loopback = install / "share" / "sparseoccvla" / "config" / "dds" / "cyclonedds_loopback.xml"
    defaults = [
        ("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp"),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"),
        ("CYCLONEDDS_URI", f"file://{loopback}"),
    ]
    return SETUP_BASH.format(
        install=install,
        prepends="\n".join(
            f"_sparseoccvla_prepend {name} {shlex.quote(str(path))}" for name, path in prepends
        ),
        defaults="\n".join(f"_sparseoccvla_default {name} {shlex.quote(value)}" for name, value in defaults),
    )
