"""Resolve requirements/*.txt into requirements/lock*.txt: `make lock`.

A lock holds every package of the tested set with its size for Linux x86-64 and Python 3.12, so that
`make setup` can say beforehand how much comes. Versions stay as they are unless a requirement forbids
them or UPGRADE names the package: `make lock UPGRADE="torch timm"`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
DIRECT = ("runtime.txt", "nuscenes.txt", "language.txt", "ros.txt", "dev.txt")
# Libraries that torch's default build brings and a CPU build does not have.
CUDA = re.compile(r"nvidia-|cuda-|triton$")
WHEEL = re.compile(r"(none-any|(cp312|abi3)-manylinux\w*x86_64[\w.]*)\.whl$")

HEAD = """\
# Made by `make lock` from {sources}; do not edit.
# {what} Sizes are those of the downloads for Linux x86-64.

"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pins, sized = Path(folder, "pins.txt"), Path(folder, "pylock.toml")
        pins.write_text("".join(path.read_text() for path in sorted(REQUIREMENTS.glob("lock*.txt"))))
        upgrade = [f"--upgrade-package={name}" for name in sys.argv[1:]]
        compile_requirements(["--no-annotate", "--output-file", str(pins), *upgrade])
        compile_requirements(
            ["--constraint", str(pins), "--format", "pylock.toml", "--output-file", str(sized)]
        )
        packages = tomllib.loads(sized.read_text())["packages"]
    lines = {str(package["name"]): f"{package['name']}=={package['version']}" for package in packages}
    width = max(map(len, lines.values()))
    sizes = {str(package["name"]): download_bytes(package) for package in packages}
    for name, what, cuda in (
        ("lock.txt", "The tested set.", False),
        ("lock-cuda.txt", "What torch's default build needs besides; left out with TORCH_INDEX.", True),
    ):
        body = [
            f"{line:<{width}}  # {size_text(sizes[package])}\n"
            for package, line in sorted(lines.items())
            if bool(CUDA.match(package)) is cuda
        ]
        (REQUIREMENTS / name).write_text(HEAD.format(sources=", ".join(DIRECT), what=what) + "".join(body))


def compile_requirements(options: list[str]) -> None:
    sources = [str(REQUIREMENTS / name) for name in DIRECT]
    command = ["uv", "pip", "compile", "--quiet", "--python", sys.executable, *options, *sources]
    subprocess.run(command, check=True, cwd=ROOT)


def download_bytes(package: dict) -> int:
    """Size of the file that pip takes on Linux x86-64: the best wheel, else the source archive."""
    wheels = [wheel for wheel in package.get("wheels", ()) if WHEEL.search(wheel["url"])]
    files = wheels or package.get("wheels", ()) or [package["sdist"]]
    return int(files[0]["size"])


def size_text(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 1):.0f} kB"


if __name__ == "__main__":
    main()
