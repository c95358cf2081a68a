"""The installed executables: each runs its module under the Python that has torch.

`colcon build` gives executables the Python that ran it, on most machines /usr/bin/python3, while torch
lives in the virtual environment that `make setup` made. So the scripts in lib/sparseoccvla come here
first. The Python is, in this order: the one named by SPARSEOCCVLA_PYTHON; the virtual environment of the
source tree; the present one, when it has what the module needs.

Standard library only, and syntax that older Pythons read: whatever `python3` is first on PATH runs this.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SPARSEOCCVLA_PYTHON"


class InterpreterError(RuntimeError):
    """No Python on this machine can run an executable; the text says what was tried and what to do."""


@dataclass(frozen=True)
class Executable:
    """A console script: `module` has a `main`, and cannot be imported without the modules it `needs`."""

    module: str
    needs: tuple[str, ...]

    def __call__(self) -> None:
        """Run the module's main here, or replace this process by one of the right Python."""
        try:
            python = choose_python(self.needs, source_tree())
        except InterpreterError as error:
            sys.exit(f"{self.module}: {error}")
        if python is None:
            sys.exit(importlib.import_module(self.module).main())
        # -P: the working directory must not shadow modules.
        os.execv(python, [python, "-P", "-m", self.module, *sys.argv[1:]])


ROS = ("rclpy", "sparseoccvla_msgs", "numpy")
encoder_node = Executable("sparseoccvla_ros.encoder_node", (*ROS, "torch"))
reasoner_node = Executable("sparseoccvla_ros.reasoner_node", (*ROS, "torch", "transformers"))
planner_node = Executable("sparseoccvla_ros.planner_node", (*ROS, "torch"))
composed_nodes = Executable("sparseoccvla_ros.composed_nodes", (*ROS, "torch", "transformers"))
guard_node = Executable("sparseoccvla_ros.guard_node", ROS)
replay_node = Executable("sparseoccvla_ros.replay_node", (*ROS, "rosbags"))
visualizer_node = Executable("sparseoccvla_ros.visualizer_node", ROS)
command_line = Executable("sparseoccvla.cli", ("numpy", "torch", "typer"))


def source_tree() -> Path:
    """The folder this package was installed from: where package.xml and, after `make setup`, .venv are."""
    if importlib.util.find_spec("sparseoccvla_ros._built_from") is None:
        return Path(__file__).resolve().parents[1]
    return Path(importlib.import_module("sparseoccvla_ros._built_from").SOURCE)


def choose_python(needs: tuple[str, ...], source: Path) -> str | None:
    """The Python that runs a module which needs these modules; None is the present one.

    Raises:
        InterpreterError: the variable names no executable, or nothing has the modules.
    """
    named = os.environ.get(VARIABLE)
    venv = source / ".venv"
    if named:
        if not os.access(named, os.X_OK) or os.path.isdir(named):
            raise InterpreterError(
                f"{VARIABLE} is {named!r}, which is no executable; wanted the path of a Python that has torch"
            )
        return None if named == sys.executable else named
    if os.access(venv / "bin" / "python", os.X_OK):
        # The folders are compared: a venv's python is a link to its base's.
        same = os.path.realpath(venv) == os.path.realpath(sys.prefix)
        return None if same else str(venv / "bin" / "python")
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise InterpreterError(
            f"{sys.executable} does not have {', '.join(missing)}, and there is no virtual environment at "
            f"{venv}. Make one with `make setup` in {source}, or name a Python that has them: "
            f"export {VARIABLE}=/path/to/python"
        )
    return None
