"""Executables find the Python that has torch, whatever Python starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseoccvla_ros.interpreter import Executable, InterpreterError, choose_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source tree without a virtual environment."""
    monkeypatch.delenv("SPARSEOCCVLA_PYTHON", raising=False)
    return tmp_path


def make_executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_variable_wins_over_the_virtual_environment(source, monkeypatch):
    make_executable(source / ".venv" / "bin" / "python")
    named = make_executable(source / "mine")
    monkeypatch.setenv("SPARSEOCCVLA_PYTHON", str(named))
    assert choose_python(("numpy",), source) == str(named)


def test_a_variable_that_names_nothing_is_an_error(source, monkeypatch):
    monkeypatch.setenv("SPARSEOCCVLA_PYTHON", "/nowhere/python")
    with pytest.raises(InterpreterError, match="SPARSEOCCVLA_PYTHON is '/nowhere/python', which is no exec"):
        choose_python(("numpy",), source)


def test_the_virtual_environment_of_the_source_tree_comes_next(source):
    python = make_executable(source / ".venv" / "bin" / "python")
    assert choose_python(("numpy",), source) == str(python)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="the tests run under another Python")
def test_inside_that_virtual_environment_nothing_is_started_again():
    assert choose_python(("numpy",), ROOT) is None


def test_without_one_the_present_python_will_do_if_it_has_everything(source):
    assert choose_python(("numpy", "json"), source) is None


def test_the_error_names_what_is_missing_and_two_ways_to_mend_it(source):
    with pytest.raises(InterpreterError, match="does not have no_such_module") as caught:
        choose_python(("numpy", "no_such_module"), source)
    assert f"`make setup` in {source}" in str(caught.value)
    assert "export SPARSEOCCVLA_PYTHON=" in str(caught.value)


def test_an_executable_replaces_a_foreign_python_and_keeps_its_arguments(tmp_path):
    """The base of the virtual environment has no numpy: it stands for the system's python3."""
    foreign = os.path.realpath(sys.executable)
    (tmp_path / "probe.py").write_text("import sys\ndef main(): print(sys.prefix, *sys.argv[1:])\nmain()\n")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from sparseoccvla_ros.interpreter import Executable\n"
        "Executable('probe', ('numpy',))()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("SPARSEOCCVLA_PYTHON", None)
    done = subprocess.run(
        [foreign, "-c", code, "--ros-args", "-r", "a:=b c"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{ROOT / '.venv'} --ros-args -r a:=b c"


def test_an_executable_that_finds_no_python_ends_with_one_line(source, monkeypatch):
    monkeypatch.setattr("sparseoccvla_ros.interpreter.source_tree", lambda: source)
    with pytest.raises(SystemExit, match=r"^some_node: .* does not have no_such_module"):
        Executable("some_node", ("no_such_module",))()
