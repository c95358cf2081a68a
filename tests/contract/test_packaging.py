"""The metadata is true: versions, dependencies, executables, and what `colcon` makes of it."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

from sparseoccvla_ros import interpreter
from sparseoccvla_ros.interpreter import Executable
from tools.bootstrap.environment import PIN, canonical

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
MESSAGES = ROOT / "ros2_ws" / "src" / "sparseoccvla_msgs"
COLCON = Path(sys.executable).with_name("colcon")

# rosdep's keys for Python modules that apt has.
ROSDEP_KEYS = {
    "cv2": "python3-opencv",
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "PIL": "python3-pil",
    "scipy": "python3-scipy",
    "tf2_ros": "tf2_ros_py",
    "yaml": "python3-yaml",
}
# Started, not imported: by launch files and by people.
PROGRAMS = {"ros2bag", "ros2launch", "rosbag2_storage_mcap", "rviz2"}
IMPORTED = ("runtime.txt", "nuscenes.txt", "language.txt")
ALL_FILES = (*IMPORTED, "ros.txt", "dev.txt")
PROVIDED = importlib.metadata.packages_distributions()
OURS = {"sparseoccvla", "sparseoccvla_ros", "tools", "tests", "benchmarks", "conftest"}


def imports(folder: str) -> dict[str, set[str]]:
    """Top-level module: the files of a folder that import it, anywhere; not the stdlib's, not ours."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def requirements(*names: str) -> Iterator[tuple[Requirement, str]]:
    """(requirement, its reason) of each line of these files of requirements/."""
    for name in names:
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            text, _, reason = line.partition("#")
            if text.strip():
                yield Requirement(text), reason.strip()


def distributions(*names: str) -> set[str]:
    return {canonical(requirement.name) for requirement, _ in requirements(*names)}


def manifest_keys(tag: str) -> set[str]:
    return {str(element.text) for element in MANIFEST.iter(tag)}


@pytest.fixture(scope="module")
def setup_py() -> dict:
    """What setup.py hands to setuptools, run up to the point where it would build."""
    code = (
        "import json, setuptools; from distutils.core import run_setup; "
        "d = run_setup('setup.py', stop_after='init'); "
        "print(json.dumps({'version': d.get_version(), 'packages': d.packages, 'data_files': d.data_files, "
        "'scripts': d.entry_points['console_scripts'], 'extras': d.extras_require, "
        "'package_data': d.package_data}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# Versions and the manifest


def test_there_is_one_version(setup_py):
    messages = ElementTree.parse(MESSAGES / "package.xml").getroot()
    assert setup_py["version"] == MANIFEST.findtext("version") == messages.findtext("version")


def colcon_list(workspace: Path) -> dict[str, str]:
    """Package: the build type that colcon recognizes."""
    command = [COLCON, "--log-base", workspace / "log", "list", "--base-paths", workspace]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^(\w+)\t.*\((.*)\)$", done.stdout, re.MULTILINE))


def copy_manifests(workspace: Path) -> Path:
    """The files by which colcon recognizes our packages."""
    for package, source in (("sparseoccvla", ROOT), ("sparseoccvla_msgs", MESSAGES)):
        (workspace / package).mkdir()
        for name in ("package.xml", "setup.py", "setup.cfg", "CMakeLists.txt"):
            if (source / name).is_file():
                shutil.copy(source / name, workspace / package)
    return workspace


def test_colcon_recognizes_both_packages(tmp_path):
    assert colcon_list(copy_manifests(tmp_path)) == {
        "sparseoccvla": "ros.ament_python",
        "sparseoccvla_msgs": "ros.ament_cmake",
    }


@pytest.mark.slow
def test_colcon_would_silently_downgrade_a_package_with_a_broken_manifest(tmp_path):
    """The control: an address that catkin_pkg refuses turns the package into plain Python."""
    manifest = copy_manifests(tmp_path) / "sparseoccvla" / "package.xml"
    manifest.write_text(re.sub(r'email="[^"]*"', 'email="a@b.c"', manifest.read_text()))
    assert colcon_list(tmp_path)["sparseoccvla"] == "python"


def test_colcon_test_finds_pytest(setup_py):
    assert setup_py["extras"]["test"] == ["pytest"]


def test_the_workspace_links_both_packages():
    assert (ROOT / "ros2_ws/src/sparseoccvla").resolve() == ROOT
    assert (ROOT / "msg").resolve() == MESSAGES / "msg"


# Dependencies


def undeclared_ros_imports(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Imports that neither package.xml nor a requirements file declares."""
    pip_only = pip_modules(distributions(*IMPORTED))
    keys = manifest_keys("exec_depend")
    return {
        name: files
        for name, files in found.items()
        if ROSDEP_KEYS.get(name, name) not in keys and name not in keys and name not in pip_only
    }


def pip_modules(names: set[str]) -> set[str]:
    """Top-level modules that installed distributions of these names provide."""
    return {module for module, owners in PROVIDED.items() if {canonical(owner) for owner in owners} & names}


def test_package_xml_names_what_the_nodes_and_launch_files_import():
    assert undeclared_ros_imports({**imports("sparseoccvla_ros"), **imports("launch")}) == {}


def test_an_undeclared_import_is_seen():
    assert undeclared_ros_imports({"vision_msgs": {"x.py"}}) == {"vision_msgs": {"x.py"}}


def test_package_xml_names_nothing_that_nobody_uses():
    used = {**imports("sparseoccvla_ros"), **imports("launch"), **imports("sparseoccvla")}
    keys = {ROSDEP_KEYS.get(name, name) for name in used} | set(used) | PROGRAMS
    assert manifest_keys("exec_depend") - keys == set()


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("sparseoccvla", IMPORTED),
        ("tools", ALL_FILES),
        ("tests", ALL_FILES),
        ("benchmarks", ALL_FILES),
    ],
)
def test_requirements_name_what_is_imported(folder, files):
    ros = manifest_keys("exec_depend") | manifest_keys("test_depend") | {"ros2cli", "rosidl_cli"}
    declared = pip_modules(distributions(*files))
    missing = {name: where for name, where in imports(folder).items() if name not in declared | ros}
    assert missing == {}


def test_requirements_name_nothing_that_nobody_uses():
    used = {name for folder in ("sparseoccvla", "sparseoccvla_ros", "tests") for name in imports(folder)}
    # Needed by another one, which its line says.
    through_others = {"torchvision", "tensorboard", "onnxscript"}
    for name in distributions(*IMPORTED) - through_others:
        assert pip_modules({name}) & used, f"{name} is in requirements/, but nothing imports it"


def test_every_requirement_says_why():
    for requirement, reason in requirements(*ALL_FILES):
        assert reason, requirement


def test_the_lock_satisfies_every_requirement():
    locks = "".join(path.read_text() for path in (ROOT / "requirements").glob("lock*.txt"))
    pinned = {canonical(name): version for name, version, *_ in PIN.findall(locks)}
    for requirement, _ in requirements(*ALL_FILES):
        version = pinned.get(canonical(requirement.name))
        assert version is not None, f"{requirement} is not in a lock; make lock"
        assert requirement.specifier.contains(version), (
            f"{requirement}, but the lock has {version}; make lock"
        )


def test_every_line_of_a_lock_is_a_pin_with_a_size():
    """The sizes are what `make setup` announces; a line without one would not be counted."""
    for path in (ROOT / "requirements").glob("lock*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert len(PIN.findall(path.read_text())) == len(lines) > 0


# What is installed


def test_every_executable_has_a_module_with_a_main(setup_py):
    for script in setup_py["scripts"]:
        name, target = (part.strip() for part in script.split("="))
        assert target == f"sparseoccvla_ros.interpreter:{name}"
        executable = getattr(interpreter, name)
        assert executable.module == f"sparseoccvla_ros.{name}"
        tree = ast.parse((ROOT / executable.module.replace(".", "/")).with_suffix(".py").read_text())
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "if __name__ ==" in ast.unparse(tree), f"{executable.module} does not run with python -m"


def test_every_executable_is_installed(setup_py):
    defined = {name for name, value in vars(interpreter).items() if isinstance(value, Executable)}
    installed = {script.split("=")[0].strip() for script in setup_py["scripts"]}
    assert defined - {"command_line"} == installed


def test_every_launch_and_configuration_file_is_installed(setup_py):
    installed = {name for _, names in setup_py["data_files"] for name in names}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("launch", "config")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= installed
    for folder, names in setup_py["data_files"]:
        for name in names:
            assert folder.endswith(str(Path(name).parent)) or not name.startswith(
                ("launch", "config", "models")
            )


def test_every_model_of_the_repository_is_installed(setup_py):
    """And no other: a user may keep gigabytes of weights in models/."""
    command = ["git", "ls-files", "models"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    installed = {name for _, names in setup_py["data_files"] for name in names}
    assert set(done.stdout.split()) <= installed


def test_every_package_is_installed_whole(setup_py):
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in ("sparseoccvla", "sparseoccvla_ros")
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(setup_py["packages"]) == folders, "a folder with .py files has no __init__.py"
    other = {
        path.relative_to(ROOT)
        for package in ("sparseoccvla", "sparseoccvla_ros")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    declared = {
        path.relative_to(ROOT)
        for package, patterns in setup_py["package_data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert other == declared, "setup.py installs .py files and what package_data names"


def test_folders_of_the_root_are_no_packages():
    """`import launch` must find ROS's, also when the root is on sys.path."""
    for name in ("launch", "config", "models", "msg", "tools", "tests"):
        assert not (ROOT / name / "__init__.py").exists()


def test_no_two_test_files_share_a_name():
    """launch_testing's plugin imports every test file by its bare name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
