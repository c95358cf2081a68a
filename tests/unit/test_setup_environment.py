"""What `make setup` installs, announces and leaves alone."""

import pytest

from tools.bootstrap import environment, runtime
from tools.bootstrap.environment import fingerprint, missing_packages, outside_environment
from tools.bootstrap.errors import SetupError


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """An empty virtual environment and lock files of our own."""
    folder, requirements = tmp_path / ".venv", tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "lock.txt").write_text("torch==2.13.0  # 500.0 MB\ntorchvision==0.28.0  # 8.0 MB\n")
    (requirements / "lock-cuda.txt").write_text("nvidia-cublas==13.1  # 400.0 MB\n")
    monkeypatch.setattr(environment, "VENV", folder)
    monkeypatch.setattr(environment, "REQUIREMENTS", requirements)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    return folder


@pytest.fixture
def commands(monkeypatch):
    """What pip was asked to install, instead of doing it."""
    asked = []
    monkeypatch.setattr(environment, "pip_install", lambda arguments, doing: asked.append(arguments))
    return asked


def have(venv, *names: str) -> None:
    for name in names:
        (venv / "lib" / "python3.12" / "site-packages" / f"{name}.dist-info").mkdir(parents=True)


def locks() -> list:
    return sorted(environment.REQUIREMENTS.glob("lock*.txt"))


def test_only_what_is_missing_or_another_version_is_counted(venv):
    have(venv, "torch-2.13.0", "torchvision-0.27.0", "nvidia_cublas-13.1")
    assert missing_packages(locks()) == {"torchvision": 8e6}


def test_a_local_build_of_the_pinned_version_counts_as_it(venv):
    have(venv, "torch-2.13.0+cpu")
    assert "torch" not in missing_packages(locks())


def test_the_size_is_said_before_anything_comes(venv, commands, capsys):
    environment.ensure_environment()
    said = capsys.readouterr().err
    assert "3 packages, about 908 MB" in said
    assert "400 MB of it are CUDA libraries" in said
    assert "TORCH_INDEX=" in said


def test_a_second_run_installs_nothing(venv, commands, capsys):
    environment.ensure_environment()
    first = len(commands)
    capsys.readouterr()
    environment.ensure_environment()
    assert len(commands) == first > 0
    assert capsys.readouterr().err == ""


def test_a_changed_lock_is_noticed(venv, commands):
    environment.ensure_environment()
    first = len(commands)
    (environment.REQUIREMENTS / "lock.txt").write_text("torch==2.14.0  # 500.0 MB\n")
    environment.ensure_environment()
    assert len(commands) > first


def test_another_torch_index_takes_torch_alone_and_leaves_cuda_out(venv, commands):
    environment.ensure_environment("https://index.example/cpu")
    torch, rest = commands
    assert torch == ["--index-url", "https://index.example/cpu", "torch==2.13.0", "torchvision==0.28.0"]
    assert rest == [f"--requirement={environment.REQUIREMENTS / 'lock.txt'}"]


def test_the_torch_index_is_remembered(venv, commands):
    environment.ensure_environment("https://index.example/cpu")
    first = len(commands)
    environment.ensure_environment()
    assert len(commands) == first


def test_a_fingerprint_sees_contents_names_and_words(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("a")
    prints = [fingerprint([one]), fingerprint([two]), fingerprint([one], "word"), fingerprint([one, two])]
    one.write_text("b")
    prints.append(fingerprint([one]))
    assert len(set(prints)) == len(prints)


def test_tools_run_without_what_our_own_shell_set(monkeypatch):
    ours = str(environment.VENV / "ros2" / "lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", ours)
    monkeypatch.setenv("PYTHONPATH", f"{ours}:/opt/mine")
    clean = outside_environment()
    assert "LD_LIBRARY_PATH" not in clean
    assert clean["PYTHONPATH"] == "/opt/mine"


# Which ROS


def test_without_a_sourced_ros_the_wheel_is_used(monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert not runtime.jazzy_is_sourced()


def test_a_sourced_jazzy_is_used(monkeypatch, tmp_path):
    (tmp_path / "rclpy").mkdir()
    (tmp_path / "rclpy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert runtime.jazzy_is_sourced()


def test_our_own_shell_is_no_sourced_jazzy(monkeypatch, tmp_path):
    """After `source ros2_ws/install/setup.bash` the wheel's rclpy can be imported too."""
    (tmp_path / ".venv" / "rclpy").mkdir(parents=True)
    (tmp_path / ".venv" / "rclpy" / "__init__.py").touch()
    monkeypatch.setattr(runtime, "VENV", tmp_path / ".venv")
    monkeypatch.syspath_prepend(tmp_path / ".venv")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert not runtime.jazzy_is_sourced()


def test_another_distribution_is_refused(monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "humble")
    with pytest.raises(SetupError, match="ROS 2 humble is sourced in this shell, wanted jazzy or none"):
        runtime.jazzy_is_sourced()


def test_half_a_jazzy_is_refused(monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="rclpy cannot be imported; is ROS sourced whole"):
        runtime.jazzy_is_sourced()
