"""History frames are 0.5 s apart whatever the camera rate, live and in training alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseoccvla.config import MemoryConfig
from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.memory import FeatureMemory, select_history

START_NS = 100 * NS_PER_S


def stamps(times_s: list[float]) -> list[int]:
    return [START_NS + round(time * NS_PER_S) for time in times_s]


def filled(times_s: list[float], frames: int = 4, config: MemoryConfig | None = None) -> FeatureMemory[float]:
    memory: FeatureMemory[float] = FeatureMemory(config or MemoryConfig(), frames)
    for stamp_ns, time in zip(stamps(times_s), times_s, strict=True):
        memory.add(stamp_ns, time)
    return memory


@pytest.mark.parametrize("rate_hz", [2.0, 4.0, 12.0, 20.0, 30.0])
def test_frames_are_half_a_second_apart_at_any_rate(rate_hz: float) -> None:
    times = [i / rate_hz for i in range(int(3 * rate_hz) + 1)]
    chosen = filled(times).select(stamps([times[-1]])[0])
    assert chosen[0] == times[-1]
    for k, time in enumerate(chosen[1:], 1):
        assert time is not None
        assert abs(time - (times[-1] - 0.5 * k)) <= 0.15


def test_a_frame_outside_the_tolerance_is_masked() -> None:
    memory = filled([0.0, 0.5, 1.16, 1.5, 2.0])
    assert memory.select(stamps([2.0])[0]) == [2.0, 1.5, None, 0.5]
    assert filled([0.0, 0.5, 1.15, 1.5, 2.0]).select(stamps([2.0])[0]) == [2.0, 1.5, 1.15, 0.5]


def test_frame_0_is_t0_itself_and_nothing_near_it() -> None:
    memory = filled([0.0, 0.5, 1.0])
    assert memory.select(stamps([1.0])[0] + 1)[0] is None


def test_the_nearest_frame_is_taken_and_of_two_the_newer() -> None:
    assert select_history(stamps([0.0, 0.4, 0.53, 1.0]), stamps([1.0])[0], 2, 0.15) == [3, 2]
    assert select_history(stamps([0.4, 0.6, 1.0]), stamps([1.0])[0], 2, 0.15) == [2, 1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_selection_is_a_function_of_stamps_whatever_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = stamps(sorted(set(rng.uniform(0, 4, 30).round(3).tolist())))
    t0_ns = candidates[-1]
    chosen = select_history(candidates, t0_ns, 8, 0.15)
    order = rng.permutation(len(candidates))
    shuffled = [candidates[i] for i in order]
    again = select_history(shuffled, t0_ns, 8, 0.15)
    picked = [None if i is None else candidates[i] for i in chosen]
    assert picked == [None if i is None else shuffled[i] for i in again]
    for k, stamp in enumerate(picked):
        target = t0_ns - k * NS_PER_S // 2
        offered = [s for s in candidates if abs(s - target) <= 150_000_000]
        best = min((abs(s - target) for s in offered), default=None)
        assert (stamp is None) == (best is None or (k == 0 and best != 0))
        if stamp is not None:
            assert abs(stamp - target) == best


def test_training_jitter_moves_the_aim_but_not_the_tolerance() -> None:
    candidates = stamps([0.0, 0.3, 0.36, 0.5, 0.64, 1.0])
    t0_ns = candidates[-1]
    assert select_history(candidates, t0_ns, 2, 0.15) == [5, 3]
    assert select_history(candidates, t0_ns, 2, 0.15, jitter_s=(0.0, 0.12)) == [5, 4]
    assert select_history(candidates, t0_ns, 2, 0.15, jitter_s=(0.0, -0.4)) == [5, 2]
    assert select_history(candidates, t0_ns, 2, 0.15, jitter_s=(0.3, 0.0)) == [5, 3], "t0 does not move"
    with pytest.raises(ValueError, match="jitter_s has 1 values for 2 frames"):
        select_history(candidates, t0_ns, 2, 0.15, jitter_s=(0.1,))


@pytest.mark.parametrize(("frames", "most"), [(1, 1), (2, 14), (8, 52)])
def test_memory_is_bounded_at_any_rate(frames: int, most: int) -> None:
    memory: FeatureMemory[int] = FeatureMemory(MemoryConfig(), frames)
    for i in range(1000):
        memory.add(START_NS + i * NS_PER_S // 100, i)
        assert memory.counters.entries <= most
    assert memory.counters.added == 1000
    assert memory.counters.thinned > 800 or frames == 1


def test_thinning_keeps_every_frame_within_its_tolerance() -> None:
    times = [i / 60 for i in range(300)]
    chosen = filled(times, frames=8).select(stamps([times[-1]])[0])
    assert None not in chosen


def test_the_oldest_frame_stays_until_it_is_needed() -> None:
    """T = 4 reaches back 1.5 s; a set that late by the tolerance must still be there."""
    memory = filled([0.0, 0.6, 1.1, 1.64])
    assert memory.select(stamps([1.64])[0]) == [1.64, 1.1, 0.6, 0.0]


def test_clear_forgets_and_is_counted() -> None:
    memory = filled([0.0, 0.5])
    memory.clear("bag loop")
    memory.add(stamps([0.0])[0], 7.0)
    assert memory.select(stamps([0.0])[0]) == [7.0, None, None, None]
    assert (memory.counters.cleared, memory.last_clear_reason) == (1, "bag loop")


def test_time_must_not_go_back_unnoticed() -> None:
    memory = filled([0.0, 0.5])
    with pytest.raises(ValueError, match=r"not after the newest.*clear the memory after a time jump"):
        memory.add(stamps([0.5])[0], 0.5)
    assert memory.counters.entries == 2


def test_a_network_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="frames is 0, wanted at least 1"):
        FeatureMemory(MemoryConfig(), 0)
