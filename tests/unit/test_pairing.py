"""Which token a plan is made with, and that nobody waits for ever."""

from __future__ import annotations

import math

import pytest

from sparseoccvla.config import ReasoningConfig
from sparseoccvla.contracts import NS_PER_S, PlanStatus, Reasoning
from sparseoccvla.pairing import Pairing, ReasoningPairing

T0_NS = 100 * NS_PER_S
MS = 1_000_000


def pairing(policy: str, token_ages_s: list[float], **changes: float) -> ReasoningPairing:
    made = ReasoningPairing(ReasoningConfig(policy=policy, **changes))
    for age in token_ages_s:
        t0_ns = T0_NS - round(age * NS_PER_S)
        made.add(Reasoning.fake(t0_ns), forecast_t0_ns=t0_ns)
    return made


def pair(made: ReasoningPairing, waited_s: float = 0.0) -> Pairing:
    result = made.pair(T0_NS, T0_NS, T0_NS + round(waited_s * NS_PER_S))
    assert result is not None
    return result


def test_latest_takes_the_newest_token_in_any_order_of_arrival() -> None:
    for ages in ([1.0, 0.5], [0.5, 1.0]):
        result = pair(pairing("latest", ages))
        assert result.reasoning is not None
        assert result.age_s == pytest.approx(0.5)
        assert result.reasoning_t0_ns == result.forecast_t0_ns == T0_NS - NS_PER_S // 2
        assert (result.status, result.reason) == (PlanStatus.OK, "")


def test_latest_never_takes_a_token_of_the_future() -> None:
    """A planner that catches up on older queries must not see what came after them."""
    assert pair(pairing("latest", [-0.5, 0.5])).age_s == pytest.approx(0.5)
    assert pair(pairing("latest", [-0.5])).reasoning is None


def test_latest_without_a_fresh_token_uses_the_null_token_at_once() -> None:
    old = pair(pairing("latest", [2.0], max_age_s=1.5))
    assert (old.reasoning, old.reasoning_t0_ns, old.forecast_t0_ns) == (None, 0, 0)
    assert math.isnan(old.age_s)
    assert old.status == PlanStatus.DEGRADED_NO_REASONING
    assert old.reason == "reasoning is 2.00 s old, at most 1.5 s"
    assert pair(pairing("latest", [])).reason == "no reasoning yet"
    assert pair(pairing("latest", [1.5], max_age_s=1.5)).reasoning is not None


def test_same_frame_waits_for_its_own_token() -> None:
    made = pairing("same_frame", [0.5], deadline_s=0.5)
    assert made.pair(T0_NS, T0_NS + 10 * MS, T0_NS + 10 * MS) is None
    assert made.pair(T0_NS, T0_NS + 10 * MS, T0_NS + 509 * MS) is None
    made.add(Reasoning.fake(T0_NS), T0_NS)
    result = made.pair(T0_NS, T0_NS + 10 * MS, T0_NS + 400 * MS)
    assert result is not None
    assert (result.reasoning_t0_ns, result.age_s) == (T0_NS, 0.0)


def test_same_frame_gives_up_at_its_deadline_and_takes_no_other_token() -> None:
    made = pairing("same_frame", [0.5], deadline_s=0.5)
    arrived_ns = T0_NS + 10 * MS
    assert made.deadline_ns(arrived_ns) == arrived_ns + 500 * MS
    result = made.pair(T0_NS, arrived_ns, made.deadline_ns(arrived_ns))
    assert result is not None
    assert result.reasoning is None
    assert result.status == PlanStatus.DEGRADED_NO_REASONING
    assert result.reason == "no reasoning of this frame within 0.5 s"


def test_off_wants_no_reasoning_and_is_not_degraded() -> None:
    result = pair(pairing("off", [0.0]))
    assert result.reasoning is None
    assert (result.status, result.reason) == (PlanStatus.OK, "")


@pytest.mark.parametrize("policy", ["latest", "off"])
def test_only_same_frame_ever_waits(policy: str) -> None:
    made = pairing(policy, [])
    assert made.deadline_ns(T0_NS) == T0_NS
    assert made.pair(T0_NS, T0_NS, T0_NS) is not None


def test_a_token_that_comes_again_replaces_the_first() -> None:
    made = pairing("latest", [0.5])
    newer = Reasoning.fake(T0_NS - NS_PER_S // 2, seed=9)
    made.add(newer)
    assert pair(made).reasoning is newer


def test_tokens_are_bounded_and_clear_forgets_them() -> None:
    made = pairing("same_frame", [10.0 + i for i in range(100)] + [0.0])
    assert pair(made).reasoning is not None
    made.clear()
    assert made.pair(T0_NS, T0_NS, T0_NS) is None
    assert made.counters.tokens == 101
    assert (made.counters.paired, made.counters.without) == (1, 0)
