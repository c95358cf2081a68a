"""Settings of everything around the networks. A default is written here and nowhere else.

ROS parameters, their descriptions and ranges, and the parameter table in the docs are generated
from these dataclasses; YAML files only override. The networks' own settings stand on top of the
file of each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from sparseoccvla.contracts import CAMERA_NAMES
from sparseoccvla.errors import InputError


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that also carries what a parameter descriptor needs."""
    metadata = {"doc": doc, "unit": unit, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


class ConfigError(InputError):
    """A setting has a value it can't have; the text says which, what came and what is allowed."""


def check(config: Any) -> None:
    """Raise `ConfigError` for the first setting outside its range or choices."""
    for item in fields(config):
        value, limits = getattr(config, item.name), item.metadata
        where = f"{type(config).__name__}.{item.name} is {value!r}"
        if limits.get("choices") and value not in limits["choices"]:
            raise ConfigError(f"{where}, wanted one of {', '.join(limits['choices'])}")
        low, high = limits.get("low"), limits.get("high")
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if numeric and ((low is not None and value < low) or (high is not None and value > high)):
            unit = f" {limits['unit']}" if limits.get("unit") else ""
            raise ConfigError(f"{where}{unit}, wanted {low} to {high}{unit}")


def from_mapping(kind: type, content: Any, where: str) -> Any:
    """A (nested) dataclass of `kind` from what a JSON or YAML file holds; keys left out keep defaults.

    Args:
        kind: a dataclass whose fields are numbers, texts, tuples or dataclasses.
        content: a mapping of field names.
        where: the file, for the error.

    Raises:
        ConfigError: an unknown key or a value of another type; the text says where.
    """
    if is_dataclass(kind):
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where} is {content!r}, wanted a mapping with fields of {kind.__name__}")
        hints = get_type_hints(kind)
        unknown = sorted(set(content) - set(hints))
        if unknown:
            raise ConfigError(f"{where} has {', '.join(unknown)}, wanted only {', '.join(hints)}")
        try:
            return kind(
                **{key: from_mapping(hints[key], value, f"{where}: {key}") for key, value in content.items()}
            )
        except ValueError as error:
            raise error if isinstance(error, InputError) else ConfigError(f"{where}: {error}") from error
    if get_origin(kind) is tuple and isinstance(content, (list, tuple)):
        types = get_args(kind)
        if types[-1] is Ellipsis:
            types = types[:1] * len(content)
        if len(types) != len(content):
            raise ConfigError(f"{where} is {content!r}, wanted {len(types)} values")
        return tuple(
            from_mapping(item, value, f"{where}[{i}]")
            for i, (item, value) in enumerate(zip(types, content, strict=True))
        )
    if kind is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if type(content) is not kind:
        raise ConfigError(f"{where} is {content!r}, wanted a {getattr(kind, '__name__', kind)}")
    return content


class Checked:
    """Base of the settings below: an impossible value never gets past the constructor."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class SynchronizerConfig(Checked):
    """How camera messages become one set. The reference camera's stamp is t0."""

    cameras: tuple[str, ...] = setting(CAMERA_NAMES, "Cameras of a set, first present one is the reference.")
    stamp_offsets_s: tuple[float, ...] = setting(
        (),
        "Added to each camera's stamp to make it mid-exposure, in the order of cameras; empty: none.",
        unit="s",
    )
    phases_s: tuple[float, ...] = setting(
        (),
        "When each camera fires after the reference camera, in the order of cameras; empty: together.",
        unit="s",
    )
    tolerance_s: float = setting(
        0.045,
        "Farthest a stamp may lie from t0 plus its phase; below half the shortest time between sets.",
        unit="s",
        low=0.001,
        high=0.5,
    )
    deadline_s: float = setting(
        0.1, "Longest wait for late cameras after a set's first arrival.", unit="s", low=0.0, high=5.0
    )
    policy: str = setting(
        "partial",
        "Cameras missing at the deadline: drop the set, hold their last picture, blank, or partial (masked).",
        choices=("drop", "hold", "blank", "partial"),
    )
    max_hold_s: float = setting(0.5, "Oldest picture that `hold` repeats.", unit="s", low=0.0, high=5.0)
    max_pending_sets: int = setting(4, "Incomplete sets kept; the oldest is closed first.", low=1, high=64)
    time_jump_s: float = setting(
        1.0,
        "A stamp this far behind the newest of its camera, or a clock this far back, is a time jump.",
        unit="s",
        low=0.05,
        high=60.0,
    )
    max_gap_s: float = setting(
        3.0, "A set this long after the one before clears temporal memory.", unit="s", low=0.1, high=60.0
    )


@dataclass(frozen=True)
class MemoryConfig(Checked):
    """The ring of past feature sets."""

    tolerance_s: float = setting(
        0.15,
        "History frame k is the one nearest t0 - 0.5 k within this, else masked.",
        unit="s",
        low=0.0,
        high=0.25,
    )
    slack_s: float = setting(0.3, "Kept beyond the oldest frame asked for.", unit="s", low=0.0, high=2.0)
    min_spacing_s: float = setting(
        0.08,
        "Feature sets closer than this are thinned, so that fast cameras can't fill the memory.",
        unit="s",
        low=0.0,
        high=0.25,
    )


@dataclass(frozen=True)
class OdometryConfig(Checked):
    """The buffer of vehicle poses in the odom frame and the ego state drawn from it."""

    buffer_s: float = setting(6.0, "Length kept.", unit="s", low=2.5, high=60.0)
    max_extrapolation_s: float = setting(
        0.15, "Farthest a camera stamp may lie outside odometry.", unit="s", low=0.0, high=1.0
    )
    max_gap_s: float = setting(
        0.75,
        "Longest hole between two samples that is interpolated over (keyframes: 0.5).",
        unit="s",
        low=0.05,
        high=5.0,
    )
    jump_m: float = setting(
        2.0,
        "A pose this far from where the twist leads is a jump: memory is cleared.",
        unit="m",
        low=0.1,
        high=100.0,
    )
    jump_rad: float = setting(
        0.3,
        "A heading this far from where the twist leads is a jump: memory is cleared.",
        unit="rad",
        low=0.02,
        high=3.2,
    )
    time_jump_s: float = setting(
        1.0, "A sample this far behind the newest is a time jump.", unit="s", low=0.05, high=60.0
    )
    acceleration_window_s: float = setting(
        0.55,
        "The acceleration is fitted to the speeds of this long; at least two keyframes.",
        unit="s",
        low=0.05,
        high=3.0,
    )
    max_age_s: float = setting(0.5, "Odometry older than this is lost.", unit="s", low=0.05, high=10.0)


@dataclass(frozen=True)
class ReasoningConfig(Checked):
    """How the planner pairs its frame with a reasoning token."""

    policy: str = setting(
        "latest",
        "latest: newest token not too old, else the null token; same_frame: wait for this frame's token.",
        choices=("latest", "same_frame", "off"),
    )
    max_age_s: float = setting(1.5, "Oldest token that `latest` uses.", unit="s", low=0.0, high=10.0)
    deadline_s: float = setting(0.5, "Longest wait of `same_frame`.", unit="s", low=0.0, high=30.0)


@dataclass(frozen=True)
class GuardConfig(Checked):
    """What a trajectory must be to leave the stack, and how the vehicle brakes when none is."""

    rate_hz: float = setting(10.0, "Rate of the guard's own timer.", unit="Hz", low=1.0, high=100.0)
    proposal_timeout_s: float = setting(
        0.6, "Without a proposal for this long the guard brakes.", unit="s", low=0.05, high=5.0
    )
    max_proposal_age_s: float = setting(
        0.8, "A proposal whose cameras are older than this is stale.", unit="s", low=0.05, high=5.0
    )
    max_future_s: float = setting(
        0.1, "Farthest t0 may lie ahead of the node's clock.", unit="s", low=0.0, high=1.0
    )
    validity_s: float = setting(
        0.8,
        "How long after publication a controller may follow; beyond proposal_timeout_s and a tick.",
        unit="s",
        low=0.05,
        high=3.0,
    )
    max_speed_mps: float = setting(40.0, "Fastest feasible speed.", unit="m/s", low=1.0, high=80.0)
    max_acceleration_mps2: float = setting(
        6.0, "Largest feasible gain of speed.", unit="m/s^2", low=0.5, high=15.0
    )
    max_deceleration_mps2: float = setting(
        9.0, "Largest feasible loss of speed.", unit="m/s^2", low=0.5, high=15.0
    )
    max_lateral_acceleration_mps2: float = setting(
        7.0, "Largest feasible speed times yaw rate.", unit="m/s^2", low=0.5, high=15.0
    )
    max_curvature_per_m: float = setting(0.25, "Tightest feasible turn.", unit="1/m", low=0.01, high=1.0)
    max_reverse_m: float = setting(
        0.3, "Farthest a plan may lead backwards; noise of a standing vehicle.", unit="m", low=0.0, high=5.0
    )
    path_noise_m: float = setting(
        0.05, "Error of a waypoint that must not look like a turn.", unit="m", low=0.001, high=0.5
    )
    max_start_speed_error_mps: float = setting(
        3.0, "Farthest the first step's speed may lie from the vehicle's.", unit="m/s", low=0.1, high=40.0
    )
    braking_mps2: float = setting(4.0, "Deceleration of the fallback.", unit="m/s^2", low=0.5, high=9.0)


@dataclass(frozen=True)
class WatchConfig(Checked):
    """Start-up and health reports."""

    report_after_s: float = setting(
        5.0,
        "Unmet inputs are named after this long, then again at this period.",
        unit="s",
        low=0.5,
        high=60.0,
    )
    tolerated_s: float = setting(
        1.0, "A fault shorter than this is no warning.", unit="s", low=0.0, high=60.0
    )


@dataclass(frozen=True)
class ModelSource(Checked):
    """Which weights run where."""

    model: str = setting("tiny", "A folder with manifest.json, or the name of one under models/.")
    backend: str = setting(
        "torch",
        "Who computes: torch; onnxruntime; tensorrt; or fake (deterministic numpy, for tests and latency).",
        choices=("torch", "onnxruntime", "tensorrt", "fake"),
    )
    engines: str = setting(
        "",
        "Folder of `sparseoccvla export` (onnxruntime) or of `sparseoccvla engine build` (tensorrt); "
        "empty: where export writes without --out.",
    )
    precision: str = setting(
        "fp32",
        "Arithmetic of torch: fp32; bf16: matrices and convolutions; auto: bf16 where the hardware has it.",
        choices=("fp32", "bf16", "auto"),
    )
    language_weights: str = setting(
        "stored",
        "How torch keeps the matrices of the language model: stored: as they are; int8 or int4: rounded, "
        "smaller (needs requirements/quantization.txt).",
        choices=("stored", "int8", "int4"),
    )
    compiled: bool = setting(
        False,
        "Compile the networks of torch when the stage loads: for a GPU, a CPU gains nothing. Takes up to "
        "minutes, a C++ compiler and Triton; less when it was done before.",
    )
    threads: int = setting(
        0, "CPU threads of this node, 0: a third of the cores, as three stages share them.", low=0, high=256
    )
    seed: int = setting(
        0, "Seed of weights that are not trained, and of the diffusion noise.", low=0, high=2**31 - 1
    )


@dataclass(frozen=True)
class FramesConfig(Checked):
    """Names of coordinate frames (REP-105). The vehicle's is always base_link: outputs carry it."""

    odom: str = setting("odom", "Frame of the odometry poses; smooth, never map.")


@dataclass(frozen=True)
class CameraTopicsConfig(Checked):
    """Which camera topics are read."""

    transport: str = setting(
        "compressed",
        "compressed: CAMERA/image_rect_compressed; raw: CAMERA/image_rect.",
        choices=("compressed", "raw"),
    )
    reliability: str = setting(
        "best_effort",
        "What is asked of camera publishers; reliable only where every driver offers it.",
        choices=("best_effort", "reliable"),
    )
    decode_threads: int = setting(2, "Threads that decode pictures as they arrive.", low=1, high=16)


@dataclass(frozen=True)
class ReasonerNodeConfig(Checked):
    """The reasoner's own rhythm."""

    max_rate_hz: float = setting(
        2.0, "Prefills per second at most; queries between are skipped.", unit="Hz", low=0.1, high=50.0
    )
    question: str = setting(
        "What is happening around the vehicle and what should it do?",
        "Asked on its own now and then; empty: never.",
    )
    question_period_s: float = setting(5.0, "How often it is asked.", unit="s", low=0.5, high=3600.0)
    max_tokens: int = setting(48, "Longest answer.", low=1, high=2048)


@dataclass(frozen=True)
class ReplayConfig(Checked):
    """How a bag is played."""

    bag: str = setting("", "Folder of a rosbag2 bag (MCAP or sqlite3).")
    rate: float = setting(1.0, "Speed of play.", low=0.01, high=100.0)
    loop: bool = setting(False, "Begin again at the end; /clock jumps back.")
    start_s: float = setting(0.0, "Where in the bag to begin.", unit="s", low=0.0, high=1e6)
    duration_s: float = setting(0.0, "How much to play, 0: all.", unit="s", low=0.0, high=1e6)
    clock_hz: float = setting(
        40.0,
        "Ticks of /clock beside those that come with each message.",
        unit="Hz",
        low=1.0,
        high=1000.0,
    )
    wait_for: tuple[str, ...] = setting((), "Stages (StackInfo.stage) that must be up before play begins.")
    wait_s: float = setting(120.0, "Longest wait for them.", unit="s", low=0.0, high=3600.0)
    tail_s: float = setting(
        1.0, "How long /clock goes on after the last message.", unit="s", low=0.0, high=60.0
    )


@dataclass(frozen=True)
class VisualizerConfig(Checked):
    """What is drawn for people."""

    dashboard_hz: float = setting(
        2.0, "Rate of the dashboard picture, while somebody subscribes.", unit="Hz", low=0.1, high=30.0
    )
