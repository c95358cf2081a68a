"""The ament_python package. Version, description and license are those of package.xml."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).resolve().parent
MANIFEST = ElementTree.parse(SOURCE / "package.xml").getroot()
NAME = MANIFEST.findtext("name")
MAINTAINER = next(MANIFEST.iter("maintainer"))

# Each is a name in sparseoccvla_ros/interpreter.py, which finds the Python that has torch.
EXECUTABLES = (
    "encoder_node",
    "reasoner_node",
    "planner_node",
    "composed_nodes",
    "guard_node",
    "replay_node",
    "visualizer_node",
)

# Folders installed to share/sparseoccvla as they are. Of models/, what the repository carries.
SHARED = ("launch", "config", "models/*", "models/tiny", "models/nuscenes_r50_vicuna7b")


class BuildWithSource(build_py):
    """A copy that is installed elsewhere remembers its source tree, where `make setup` puts the venv."""

    def run(self) -> None:
        super().run()
        note = Path(self.build_lib, "sparseoccvla_ros", "_built_from.py")
        self.mkpath(str(note.parent))
        note.write_text(f"SOURCE = {str(SOURCE)!r}\n")


def shared_files() -> list[tuple[str, list[str]]]:
    """data_files of SHARED: (folder in the prefix, files relative to the working directory)."""
    found: dict[str, list[str]] = {}
    for entry in SHARED:
        folder = Path(entry)
        paths = folder.parent.glob("*") if folder.name == "*" else folder.rglob("*")
        for path in sorted(paths):
            if path.is_file() and "__pycache__" not in path.parts:
                found.setdefault(f"share/{NAME}/{path.parent}", []).append(str(path))
    return sorted(found.items())


setup(
    name=NAME,
    version=MANIFEST.findtext("version"),
    description=MANIFEST.findtext("description"),
    license=MANIFEST.findtext("license"),
    maintainer=MAINTAINER.text,
    maintainer_email=MAINTAINER.attrib["email"],
    packages=find_packages(include=["sparseoccvla*"]),
    python_requires=">=3.12",
    install_requires=["setuptools"],
    extras_require={"test": ["pytest"]},
    package_data={"sparseoccvla.world": ["*.json"]},
    zip_safe=False,
    cmdclass={"build_py": BuildWithSource},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        ("bin", ["tools/bin/sparseoccvla"]),
        *shared_files(),
    ],
    entry_points={
        "console_scripts": [f"{name} = sparseoccvla_ros.interpreter:{name}" for name in EXECUTABLES]
    },
)
