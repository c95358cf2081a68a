"""The virtual environment: made once, filled from requirements/lock*.txt, left alone while they stay."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from tools.bootstrap.errors import SetupError

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)\s+# ([\d.]+) (kB|MB)$", re.MULTILINE)
ABOUT_TO_INSTALL = """\
make setup: {count} packages, about {size}, go from the package index to {venv}{hint}"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fingerprint(files: Iterable[Path], *more: str) -> str:
    """A hash of files' names and contents and some words, to see whether a step has to be done again."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0".encode() + path.read_bytes())
    digest.update("\0".join(more).encode())
    return digest.hexdigest()


def outside_environment() -> dict[str, str]:
    """os.environ without what ros2_ws/install/setup.bash or an activated .venv of this tree put there."""
    ours = (str(VENV), str(ROOT / "ros2_ws" / "install"))
    clean = dict(os.environ)
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH"):
        if name in clean:
            kept = [entry for entry in clean[name].split(os.pathsep) if not entry.startswith(ours)]
            clean[name] = os.pathsep.join(kept)
            if not kept:
                del clean[name]
    return clean


def ensure_environment(torch_index: str = "") -> Path:
    """The virtual environment with everything of the lock files in it; returns its Python.

    Args:
        torch_index: package index to take torch and torchvision from, e.g. one with CPU builds;
            the CUDA libraries are left out then. Empty: the one that this environment was made with,
            else the default index.

    Raises:
        SetupError: packages could not be installed.
    """
    note = VENV / ".torch-index"
    if not torch_index and note.is_file():
        torch_index = note.read_text()
    locks = [REQUIREMENTS / "lock.txt", *([] if torch_index else [REQUIREMENTS / "lock-cuda.txt"])]
    python = VENV / "bin" / "python"
    stamp = VENV / ".setup-stamp"
    wanted = fingerprint(locks, torch_index, str(VENV))
    if python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        create_environment()
    note.write_text(torch_index)
    missing = missing_packages(locks)
    if missing:
        hint = "" if torch_index else cuda_hint(missing)
        say(
            ABOUT_TO_INSTALL.format(
                count=len(missing), size=size_text(sum(missing.values())), venv=VENV, hint=hint
            )
        )
        install_packages(locks, torch_index)
    stamp.write_text(wanted)
    return python


def create_environment() -> None:
    if find_spec("ensurepip"):
        # Links as `python -m venv` makes them, so that a pyenv or uv Python stays the base.
        venv.EnvBuilder(with_pip=True, symlinks=True, clear=VENV.exists()).create(VENV)
    else:  # find_python.sh let such a Python pass only beside uv
        run(["uv", "venv", "--python", sys.executable, str(VENV)], "making a virtual environment with uv")


def missing_packages(locks: Iterable[Path]) -> dict[str, float]:
    """Pinned packages that are not installed in the pinned version, with their download size in bytes."""
    have = set()
    for folder in VENV.glob("lib/python*/site-packages/*.dist-info"):
        name, version = folder.name.removesuffix(".dist-info").rsplit("-", 1)
        # A local label marks a build of the same version, e.g. 2.13.0+cpu.
        have.add((canonical(name), version.split("+")[0]))
    missing = {}
    for lock in locks:
        for name, version, size, unit in PIN.findall(lock.read_text()):
            if (canonical(name), version) not in have:
                missing[name] = float(size) * {"kB": 1e3, "MB": 1e6}[unit]
    return missing


def canonical(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def cuda_hint(missing: Mapping[str, float]) -> str:
    cuda = [name for name, *_ in PIN.findall((REQUIREMENTS / "lock-cuda.txt").read_text()) if name in missing]
    if not cuda:
        return ""
    size = size_text(sum(missing[name] for name in cuda))
    return (
        f"\n            ({size} of it are CUDA libraries; make setup TORCH_INDEX=URL leaves them out, "
        "with the URL of PyTorch's index of CPU builds)"
    )


def size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def install_packages(locks: list[Path], torch_index: str) -> None:
    """Install the lock files; they are complete, so nothing is resolved again."""
    files = [f"--requirement={lock}" for lock in locks]
    if torch_index:
        pins = {name: version for name, version, *_ in PIN.findall(locks[0].read_text())}
        torch = [f"{name}=={pins[name]}" for name in ("torch", "torchvision")]
        pip_install(["--index-url", torch_index, *torch], f"installing torch from {torch_index}")
    pip_install(files, "installing the packages of requirements/lock.txt")


def pip_install(arguments: list[str], doing: str) -> None:
    """Install without dependencies into the virtual environment, with uv if there is one, else with pip."""
    uv = find_uv()
    python = str(VENV / "bin" / "python")
    if uv:
        done = subprocess.run(
            [uv, "pip", "install", "--python", python, "--no-deps", *arguments],
            env=outside_environment(),
            check=False,
        )
        if done.returncode == 0:
            return
        say(f"make setup: {doing} with uv failed with {done.returncode}; trying pip, which reads pip.conf")
    run([python, "-m", "pip", "install", "--no-deps", *arguments], doing)


def find_uv() -> str | None:
    """The uv of PATH or of the virtual environment; installed there if there is a build for this machine."""
    inside = VENV / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(inside)):
        # A pyenv shim is on PATH also when no Python has uv.
        if candidate and os.access(candidate, os.X_OK) and works([candidate, "--version"]):
            return candidate
    python = str(VENV / "bin" / "python")
    got = works([python, "-m", "pip", "install", "--quiet", f"--requirement={REQUIREMENTS / 'uv.txt'}"])
    return str(inside) if got else None


def works(command: list[str]) -> bool:
    return (
        subprocess.run(command, env=outside_environment(), capture_output=True, check=False).returncode == 0
    )


def run(command: list[str], doing: str) -> None:
    """Run a command with its output on the terminal; raise `SetupError` if it fails."""
    if subprocess.run(command, env=outside_environment(), cwd=ROOT, check=False).returncode:
        raise SetupError(f"{doing} failed; its own words stand above. The command was: {' '.join(command)}")
