"""Counts of what happened to the inputs, as diagnostics show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Counters:
    """Base of the snapshots below: frozen, and flat under one prefix for diagnostics."""

    PREFIX: ClassVar[str] = ""

    def as_dict(self) -> dict[str, str]:
        """Names and values for a DiagnosticStatus; a count by name becomes one entry for each name."""
        flat: dict[str, str] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f"{self.PREFIX}.{name}.{key}": str(count) for key, count in value.items()}
            else:
                flat[f"{self.PREFIX}.{name}"] = f"{value:g}" if isinstance(value, float) else str(value)
        return flat
