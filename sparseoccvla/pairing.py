"""Which reasoning token a plan is made with.

Planner and reasoner start from the same queries, so a token of the very frame costs the time of a
prefill. Live the planner takes the newest one that is not too old; offline and in lockstep it waits.
What was paired is part of the proposal, so that any live plan can be repeated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from sparseoccvla.config import ReasoningConfig
from sparseoccvla.contracts import NS_PER_S, PlanStatus, Reasoning
from sparseoccvla.counters import Counters

_TOKENS_KEPT = 16


@dataclass(frozen=True)
class Pairing:
    """A plan's reasoning; the stamps go into the proposal."""

    reasoning: Reasoning | None  # None: the learned null token
    reasoning_t0_ns: int  # 0: the null token
    forecast_t0_ns: int  # 0: none came with the token
    age_s: float  # t0 of the token to t0 of the plan; NaN without a token
    status: PlanStatus
    reason: str  # why there is none, in words; "" if there is one, or none is wanted


@dataclass(frozen=True)
class PairingCounters(Counters):
    """Tokens that came and plans made with and without."""

    PREFIX: ClassVar[str] = "reasoning"

    tokens: int = 0
    paired: int = 0
    without: int = 0


class ReasoningPairing:
    """Tokens in, a pairing for each plan out."""

    def __init__(self, config: ReasoningConfig) -> None:
        self.config = config
        self._tokens: dict[int, tuple[Reasoning, int]] = {}  # by t0, in the order of arrival
        self._count: Counter[str] = Counter()

    @property
    def counters(self) -> PairingCounters:
        """A snapshot."""
        return PairingCounters(**self._count)

    def add(self, reasoning: Reasoning, forecast_t0_ns: int = 0) -> None:
        """Take a token, and the t0 of the forecast from the same prefill if there was one."""
        self._count["tokens"] += 1
        self._tokens.pop(reasoning.t0_ns, None)
        self._tokens[reasoning.t0_ns] = (reasoning, forecast_t0_ns)
        if len(self._tokens) > _TOKENS_KEPT:
            del self._tokens[next(iter(self._tokens))]

    def clear(self) -> None:
        """Forget every token, as after a time jump."""
        self._tokens.clear()

    def deadline_ns(self, arrived_ns: int) -> int:
        """Until when `pair` may ask for patience with queries that arrived then, node's clock."""
        waits = self.config.policy == "same_frame"
        return arrived_ns + (round(self.config.deadline_s * NS_PER_S) if waits else 0)

    def pair(self, t0_ns: int, arrived_ns: int, now_ns: int) -> Pairing | None:
        """The pairing for a plan at t0, or None: ask again when a token comes or at the deadline.

        Args:
            t0_ns: of the queries.
            arrived_ns: when they came, node's clock.
            now_ns: the same clock now.
        """
        match self.config.policy:
            case "off":
                return self._without(PlanStatus.OK, "")
            case "same_frame":
                found = self._tokens.get(t0_ns)
                if found is None and now_ns < self.deadline_ns(arrived_ns):
                    return None
                missing = f"no reasoning of this frame within {self.config.deadline_s:g} s"
            case _:
                newest_ns = max((stamp for stamp in self._tokens if stamp <= t0_ns), default=None)
                found = self._tokens[newest_ns] if newest_ns is not None else None
                missing = "no reasoning yet"
                age_s = (t0_ns - newest_ns) / NS_PER_S if newest_ns is not None else 0.0
                if age_s > self.config.max_age_s:
                    found = None
                    missing = f"reasoning is {age_s:.2f} s old, at most {self.config.max_age_s:g} s"
        if found is None:
            return self._without(PlanStatus.DEGRADED_NO_REASONING, missing)
        reasoning, forecast_t0_ns = found
        self._count["paired"] += 1
        age_s = (t0_ns - reasoning.t0_ns) / NS_PER_S
        return Pairing(reasoning, reasoning.t0_ns, forecast_t0_ns, age_s, PlanStatus.OK, "")

    def _without(self, status: PlanStatus, reason: str) -> Pairing:
        self._count["without"] += 1
        return Pairing(None, 0, 0, float("nan"), status, reason)
