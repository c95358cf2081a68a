"""ROS parameters, declared from the config dataclasses: names, defaults, ranges and texts come from there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from sparseoccvla.config import ConfigError

# Parameters that ROS itself looks after.
_FOREIGN_PREFIXES = ("use_sim_time", "qos_overrides.", "start_type_description_service")


def describe(item: Field) -> ParameterDescriptor:
    """The descriptor of one setting. All settings are read when the node is configured, hence read-only."""
    meta, default = item.metadata, item.default
    unit = f" [{meta['unit']}]" if meta["unit"] else ""
    descriptor = ParameterDescriptor(name=item.name, description=meta["doc"] + unit, read_only=True)
    if meta["choices"]:
        descriptor.additional_constraints = "one of " + ", ".join(meta["choices"])
    if meta["low"] is not None and meta["high"] is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(meta["low"]), to_value=float(meta["high"]), step=0.0)
            ]
        else:
            descriptor.integer_range = [
                IntegerRange(from_value=int(meta["low"]), to_value=int(meta["high"]), step=1)
            ]
    return descriptor


def declare[Config](node: Node, config_class: type[Config], prefix: str = "") -> Config:
    """Declare every setting of `config_class` as `prefix.name` and return what the user chose.

    Raises:
        ConfigError: a value outside its range or choices, or of another type.
    """
    values = {}
    for item in fields(config_class):  # type: ignore[arg-type]
        name = f"{prefix}.{item.name}" if prefix else item.name
        default = item.default
        if isinstance(default, tuple):
            values[item.name] = _declare_list(node, name, item)
            continue
        override = node._parameter_overrides.get(name)  # rclpy has no public reader
        if override is not None and isinstance(default, float) and isinstance(override.value, int):
            # `deadline_s: 1` in YAML or on a command line means 1.0.
            node._parameter_overrides[name] = Parameter(name, value=float(override.value))
        try:
            values[item.name] = node.declare_parameter(name, default, describe(item)).value
        except ParameterException as error:
            raise ConfigError(
                f"parameter {name} of {node.get_name()} is {override.value if override else default!r}, "
                f"wanted {type(default).__name__}: {error}"
            ) from error
    return config_class(**values)


def _declare_list(node: Node, name: str, item: Field) -> tuple[Any, ...]:
    # An empty list has no type of its own in ROS, so the kind comes from the annotation.
    numbers = "float" in str(item.type)
    kind = Parameter.Type.DOUBLE_ARRAY if numbers else Parameter.Type.STRING_ARRAY
    default: Any = item.default
    parameter = Parameter(name, kind, list(default))
    descriptor = describe(item)
    descriptor.dynamic_typing = True  # [] and [0, 1] in YAML arrive with another type than [0.0, 1.0]
    value = node.declare_parameter(name, parameter.value, descriptor).value
    return tuple(float(v) for v in value or ()) if numbers else tuple(value or ())


def refuse_unknown(node: Node) -> None:
    """Raise `ConfigError` if somebody set a parameter that does not exist: a typo never passes silently."""
    known = set(node._parameters)
    unknown = sorted(
        name
        for name in node._parameter_overrides
        if name not in known and not name.startswith(_FOREIGN_PREFIXES)
    )
    if unknown:
        raise ConfigError(
            f"{node.get_name()} has no parameter {', '.join(unknown)}; it has {', '.join(_own(known))}"
        )


def _own(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith(_FOREIGN_PREFIXES))
