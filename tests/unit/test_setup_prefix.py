"""ros2_ws/install of a machine without ROS: whose it is, and what its setup.bash does."""

import os
import subprocess
from pathlib import Path

import pytest

from tools.bootstrap.errors import SetupError
from tools.bootstrap.prefix import (
    COLCON_LAYOUT,
    MARKER,
    MARKER_TEXT,
    refuse_foreign_install,
    remove_own_install,
    setup_bash,
)
from tools.bootstrap.runtime import Runtime
from tools.ros_env import free_domain, ros_environment


@pytest.fixture
def install(tmp_path):
    folder = tmp_path / "a folder" / "install"
    folder.mkdir(parents=True)
    runtime = Runtime(tmp_path / "venv/bin/python", tmp_path / "jazzy", tmp_path / "jazzy/rclpy")
    (folder / "setup.bash").write_text(setup_bash(runtime, folder))
    return folder


def source(
    install: Path, then: str = "env", times: int = 1, **variables: str
) -> tuple[dict[str, str], str, int]:
    """(variables, stderr, exit code) of a strict bash that sources setup.bash."""
    script = "set -euo pipefail; " + f'source "{install}/setup.bash"; ' * times + then
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return dict(pairs), done.stderr, done.returncode


def test_it_sets_what_ros_needs(install, tmp_path):
    got, error, code = source(install)
    assert (error, code) == ("", 0)
    assert got["PATH"].startswith(f"{install}/bin:{tmp_path}/venv/bin:")
    assert got["AMENT_PREFIX_PATH"] == f"{install}:{tmp_path}/jazzy"
    assert got["PYTHONPATH"] == f"{install}/lib/python3.12/site-packages:{tmp_path}/jazzy/rclpy"
    assert got["LD_LIBRARY_PATH"] == f"{tmp_path}/jazzy/lib"
    assert got["ROS_DISTRO"] == "jazzy"
    assert got["RMW_IMPLEMENTATION"] == "rmw_cyclonedds_cpp"
    assert got["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert got["CYCLONEDDS_URI"].endswith("/cyclonedds_loopback.xml")


def test_what_the_user_has_set_stays(install):
    mine = {
        "RMW_IMPLEMENTATION": "rmw_fastrtps_dynamic_cpp",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET",
        "CYCLONEDDS_URI": "file:///mine.xml",
        "PYTHONPATH": "/mine",
    }
    got, _, _ = source(install, **mine)
    assert got["PYTHONPATH"].endswith(":/mine")
    for name in ("RMW_IMPLEMENTATION", "ROS_AUTOMATIC_DISCOVERY_RANGE", "CYCLONEDDS_URI"):
        assert got[name] == mine[name]


def test_sourcing_twice_changes_nothing(install):
    once, twice = source(install)[0], source(install, times=2)[0]
    assert once == twice


def test_no_helper_function_is_left_in_the_shell(install):
    assert source(install, then="declare -F")[0] == {}
    done = subprocess.run(
        ["bash", "-c", f'source "{install}/setup.bash"; declare -F'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sparseoccvla" not in done.stdout


def test_another_distribution_in_the_shell_is_refused(install):
    got, error, code = source(install, ROS_DISTRO="humble")
    assert "ROS 2 humble is sourced in this shell, wanted jazzy or none" in error
    assert code == 1
    assert got == {}


def test_a_middleware_that_cannot_carry_the_messages_is_named(install):
    _, error, code = source(install, RMW_IMPLEMENTATION="rmw_fastrtps_cpp")
    assert "use rmw_cyclonedds_cpp or rmw_fastrtps_dynamic_cpp" in error
    assert code == 0


def test_programs_get_the_same_environment_and_a_domain_of_their_own(install, monkeypatch):
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    got = ros_environment(install / "setup.bash")
    assert got["AMENT_PREFIX_PATH"].startswith(str(install))
    assert 1 <= int(got["ROS_DOMAIN_ID"]) <= 101
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert ros_environment(install / "setup.bash")["ROS_DOMAIN_ID"] == "42"


def test_a_missing_install_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(SetupError, match=r"setup.bash is not there; make it with: make setup"):
        ros_environment(tmp_path / "setup.bash")


def test_a_domain_in_use_is_not_taken(monkeypatch):
    monkeypatch.setattr("tools.ros_env.port_is_free", lambda port: 7400 + 250 * 7 <= port < 7400 + 250 * 8)
    assert free_domain() == 7


# Whose install it is


def test_what_colcon_made_is_not_touched(install):
    (install / COLCON_LAYOUT).write_text("isolated\n")
    with pytest.raises(SetupError, match=r"was made by colcon.*rm -r .*install"):
        refuse_foreign_install(install)
    remove_own_install(install)
    assert (install / "setup.bash").is_file()


def test_an_unknown_folder_is_not_touched(install):
    with pytest.raises(SetupError, match="was made by something else than `make setup`"):
        refuse_foreign_install(install)


def test_our_own_is_replaced_and_gives_way_to_colcon(install):
    (install / MARKER).touch()
    refuse_foreign_install(install)
    remove_own_install(install)
    assert not install.exists()


def test_an_empty_or_missing_folder_is_free(tmp_path):
    (tmp_path / "install").mkdir()
    refuse_foreign_install(tmp_path / "install")
    refuse_foreign_install(tmp_path / "nowhere")


def test_the_marker_says_how_to_change_over_and_back():
    text = MARKER_TEXT.format(install="/w/install", workspace="/w")
    assert "rm -r /w/install && cd /w && colcon build" in text
    assert "make setup, in a shell without ROS" in text
