"""`make` finds a Python 3.12 wherever there is one, and says how to get one where there is none."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "find_python.sh"


class Machine:
    """A PATH, a home and a source tree of our own, with nothing of the real machine's but sh's tools."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.home, self.tree = folder / "bin", folder / "home", folder / "tree"
        for path in (self.bin, self.home, self.tree / "tools"):
            path.mkdir(parents=True)
        shutil.copy(SCRIPT, self.tree / "tools")
        for tool in ("sh", "ls", "dirname"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def add(self, path: Path, complaint: str = "") -> Path:
        """A Python that answers the script's question with `complaint`, or with nothing when it will do."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n[ -z '{complaint}' ] || echo '{complaint}'\n")
        path.chmod(0o755)
        return path

    def find(self, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.home), **variables}
        return subprocess.run(
            [self.tree / "tools" / "find_python.sh"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "tree/.venv/bin/python",
        "bin/python3.12",
        "bin/python3",
        "home/.pyenv/versions/3.12.1/bin/python3.12",
        "home/.local/share/uv/python/cpython-3.12.4-linux-x86_64-gnu/bin/python3.12",
    ],
)
def test_it_looks_in_the_tree_on_path_in_pyenv_and_in_uv(machine, tmp_path, place):
    python = machine.add(tmp_path / place)
    found = machine.find()
    assert found.stdout.strip() == str(python)
    assert found.returncode == 0


def test_a_python_that_will_not_do_is_passed_over(machine):
    machine.add(machine.bin / "python3", "is Python 3.11")
    good = machine.add(machine.home / ".pyenv/versions/3.12.1/bin/python3.12")
    assert machine.find().stdout.strip() == str(good)


def test_a_shim_that_does_not_run_is_passed_over(machine):
    shim = machine.add(machine.bin / "python3.12")
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    good = machine.add(machine.home / ".pyenv/versions/3.12.1/bin/python3.12")
    assert machine.find().stdout.strip() == str(good)


def test_the_error_says_what_was_seen_and_how_to_get_one(machine):
    machine.add(machine.bin / "python3", "is Python 3.11")
    machine.add(machine.bin / "python3.12", "has no Python.h, which the messages need")
    found = machine.find()
    assert found.returncode == 1
    assert found.stdout == ""
    assert f"{machine.bin}/python3 is Python 3.11" in found.stderr
    assert f"{machine.bin}/python3.12 has no Python.h" in found.stderr
    for remedy in ("apt install python3.12", "uv python install 3.12", "pyenv install 3.12"):
        assert remedy in found.stderr


def test_a_machine_without_any_python_gets_the_same_advice(machine):
    found = machine.find()
    assert found.returncode == 1
    assert "(there is none)" in found.stderr
    assert "uv python install 3.12" in found.stderr


def test_a_named_python_is_used_or_refused_but_not_replaced(machine):
    machine.add(machine.bin / "python3.12")
    named = machine.add(machine.home / "my" / "python")
    assert machine.find(PYTHON=str(named)).stdout.strip() == str(named)
    wrong = machine.find(PYTHON="/nowhere/python")
    assert wrong.returncode == 1
    assert "/nowhere/python does not run" in wrong.stderr


def test_the_question_is_answered_by_a_real_python(machine):
    """The fakes above say what they are told; this one is asked."""
    assert machine.find(PYTHON=sys.executable).stdout.strip() == sys.executable
