"""Camera sets: every complete one is found, nothing is mixed, and the stream never falls silent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseoccvla.config import ConfigError, SynchronizerConfig
from sparseoccvla.contracts import CAMERA_NAMES, CameraSet, CameraState
from sparseoccvla.synchronizer import Picture, Synchronizer, SynchronizerCounters, group

MS = 1_000_000
START_NS = 1_532_402_927_612 * MS
# When nuScenes cameras fire after CAM_FRONT: equal to the microsecond in every recorded set we have.
NUSCENES_PHASES_S = (0.0, 0.007879, -0.007616, 0.025065, 0.034963, 0.015433)
NUSCENES = SynchronizerConfig(phases_s=NUSCENES_PHASES_S, tolerance_s=0.02)
# nuScenes cameras follow a 20 Hz lidar at 12 Hz on average: sets are 50 or 100 ms apart.
NUSCENES_STARTS_MS = (0, 50, 150, 250, 300, 400, 500, 550, 650, 750)
FRONT, BACK_LEFT = "cam_front", "cam_back_left"


@dataclass(frozen=True)
class Arrival:
    camera: str
    stamp_ns: int
    now_ns: int
    payload: object


def drive(starts_ms: Iterable[float], phases_s: tuple[float, ...] = NUSCENES_PHASES_S) -> list[Arrival]:
    """All cameras at each start, each 5 ms on its way; the payload says which set it is of."""
    arrivals = [
        Arrival(name, stamp := START_NS + round((start + phase * 1000) * MS), stamp + 5 * MS, (index, name))
        for index, start in enumerate(starts_ms)
        for name, phase in zip(CAMERA_NAMES, phases_s, strict=True)
    ]
    return sorted(arrivals, key=lambda arrival: arrival.now_ns)


def run(synchronizer: Synchronizer, arrivals: Iterable[Arrival], *, finish: bool = True) -> list[CameraSet]:
    sets = []
    for arrival in arrivals:
        sets += synchronizer.add(arrival.camera, arrival.stamp_ns, arrival.payload, arrival.now_ns)
    while finish and (deadline_ns := synchronizer.next_deadline_ns()) is not None:
        sets += synchronizer.poll(deadline_ns)
    return sets


def origins(camera_set: CameraSet) -> dict[str, int]:
    """Which recorded set each fresh picture is of."""
    return {slot.name: slot.payload[0] for slot in camera_set.slots if slot.state is CameraState.FRESH}


def states(camera_set: CameraSet) -> dict[str, str]:
    return {slot.name: slot.state.name for slot in camera_set.slots}


def check_promises(sets: list[CameraSet], counters: SynchronizerCounters, cameras=CAMERA_NAMES) -> None:
    """What holds for any input: order, one use of each picture, the configured order, and the books."""
    stamps = [made.t0_ns for made in sets]
    assert stamps == sorted(set(stamps))
    used = [
        (slot.name, slot.stamp_ns) for made in sets for slot in made.slots if slot.state is CameraState.FRESH
    ]
    assert len(used) == len(set(used)) == counters.used
    for made in sets:
        assert tuple(slot.name for slot in made.slots) == cameras
        fresh = [slot for slot in made.slots if slot.state is CameraState.FRESH]
        assert (made.reference_camera, made.t0_ns) == (fresh[0].name, fresh[0].stamp_ns)
    check_books(sets, counters)


def check_books(sets: list[CameraSet], counters: SynchronizerCounters) -> None:
    """Every picture and every set is counted once."""
    refused = counters.duplicate + counters.unstamped + counters.unknown_camera
    known = counters.used + counters.late + counters.discarded + counters.pending
    assert counters.pictures == refused + known
    assert counters.complete + counters.held + counters.blanked + counters.partial == len(sets)
    assert [made.sequence for made in sets] == list(range(len(sets)))


# --- matching


def test_a_complete_set_leaves_with_its_last_picture() -> None:
    synchronizer = Synchronizer(NUSCENES)
    arrivals = drive([0])
    for arrival in arrivals[:-1]:
        assert synchronizer.add(arrival.camera, arrival.stamp_ns, None, arrival.now_ns) == []
    last = arrivals[-1]
    (made,) = synchronizer.add(last.camera, last.stamp_ns, "picture", last.now_ns)
    assert made.complete
    assert made.t0_ns == START_NS
    assert made.reference_camera == FRONT
    assert made.slots[4].payload == "picture"
    assert synchronizer.next_deadline_ns() is None


def test_nuscenes_sets_are_the_recorded_ones() -> None:
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, drive(NUSCENES_STARTS_MS))
    assert [set(origins(made).values()) for made in sets] == [{i} for i in range(len(NUSCENES_STARTS_MS))]
    assert all(made.complete and made.reference_camera == FRONT for made in sets)
    check_promises(sets, synchronizer.counters)


def test_without_phases_sets_are_right_when_pictures_come_in_order() -> None:
    sets = run(Synchronizer(SynchronizerConfig()), drive(NUSCENES_STARTS_MS))
    assert [set(origins(made).values()) for made in sets] == [{i} for i in range(len(NUSCENES_STARTS_MS))]


def test_without_phases_neighbors_50_ms_apart_mix_when_a_picture_is_late() -> None:
    """The control that shows what phases are for: BACK_LEFT of one set lies nearer to the next t0."""
    arrivals = [
        replace(a, now_ns=a.now_ns + 30 * MS) if a.camera == BACK_LEFT else a for a in drive([0, 50, 100])
    ]
    arrivals.sort(key=lambda arrival: arrival.now_ns)
    without = run(Synchronizer(SynchronizerConfig()), arrivals)
    assert any(len(set(origins(made).values())) > 1 for made in without)
    with_phases = run(Synchronizer(NUSCENES), arrivals)
    assert [set(origins(made).values()) for made in with_phases] == [{0}, {1}, {2}]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_scrambled_arrival_finds_every_complete_set_and_mixes_none(data: st.DataObject) -> None:
    """Jittered stamps, random delays below the time between sets, lost pictures, random polling."""
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    loss = data.draw(st.sampled_from([0.0, 0.05, 0.3]), label="loss")
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.choice([50, 100], 12)) + 1
    arrivals = [
        replace(
            a,
            stamp_ns=a.stamp_ns + int(rng.integers(-3 * MS, 3 * MS)),
            now_ns=a.now_ns + int(rng.integers(0, 40 * MS)),
        )
        for a in drive(starts.tolist())
        if rng.random() >= loss
    ]
    arrivals.sort(key=lambda a: a.now_ns)
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, arrivals)
    check_promises(sets, synchronizer.counters)
    came = [sum(a.payload[0] == i for a in arrivals) for i in range(len(starts))]
    whole = [i for i, count in enumerate(came) if count == len(CAMERA_NAMES)]
    assert [made.slots[0].payload[0] for made in sets if made.complete] == whole
    for made in sets:
        assert len(set(origins(made).values())) == 1, "two recorded sets in one"
    assert synchronizer.counters.complete == len(whole)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_grouping_does_not_depend_on_the_order_of_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [Picture(int(rng.integers(3)), int(rng.integers(0, 400)) * MS, 0) for _ in range(12)]
    # Equal stamps of one camera never get here: they are refused as duplicates.
    pictures = list({(p.camera, p.stamp_ns): p for p in pictures}.values())
    results = []
    for _ in range(2):
        groups = group(pictures, (0, 10 * MS, -10 * MS), 40 * MS)
        results.append(
            [(g.anchor_ns, sorted((c, p.stamp_ns) for c, p in g.pictures.items())) for g in groups]
        )
        rng.shuffle(pictures)
    assert results[0] == results[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["drop", "hold", "blank", "partial"]))
def test_how_often_poll_is_called_changes_nothing(seed: int, policy: str) -> None:
    rng = np.random.default_rng(seed)
    arrivals = [a for a in drive(np.cumsum(rng.choice([50, 100, 300], 10)).tolist()) if rng.random() > 0.2]
    config = replace(NUSCENES, policy=policy)
    seldom = run(Synchronizer(config), arrivals)
    often, polled = Synchronizer(config), []
    now_ns = arrivals[0].now_ns
    for arrival in arrivals:
        while now_ns < arrival.now_ns:
            polled += often.poll(now_ns)
            now_ns += int(rng.integers(1, 20 * MS))
        now_ns = arrival.now_ns
        polled += often.add(arrival.camera, arrival.stamp_ns, arrival.payload, arrival.now_ns)
    while (deadline_ns := often.next_deadline_ns()) is not None:
        polled += often.poll(deadline_ns)
    assert [(m.t0_ns, m.slots) for m in polled] == [(m.t0_ns, m.slots) for m in seldom]


def test_stamp_offsets_correct_the_stamps_before_anything_else() -> None:
    late_driver = tuple(-0.2 if name == BACK_LEFT else 0.0 for name in CAMERA_NAMES)
    arrivals = [
        replace(a, stamp_ns=a.stamp_ns + 200 * MS) if a.camera == BACK_LEFT else a for a in drive([0, 100])
    ]
    sets = run(Synchronizer(replace(NUSCENES, stamp_offsets_s=late_driver)), arrivals)
    assert [made.complete for made in sets] == [True, True]
    assert sets[0].slots[4].stamp_ns == START_NS + 34_963_000
    # The control: without the offset BACK_LEFT belongs to no set.
    assert not any(made.complete for made in run(Synchronizer(NUSCENES), arrivals))


# --- policies for missing cameras


def lossy(policy: str, **changes: float) -> tuple[Synchronizer, list[CameraSet]]:
    """Three sets 100 ms apart; the second lacks BACK_LEFT."""
    synchronizer = Synchronizer(replace(NUSCENES, policy=policy, **changes))
    arrivals = [a for a in drive([0, 100, 200]) if (a.payload[0], a.camera) != (1, BACK_LEFT)]
    return synchronizer, run(synchronizer, arrivals)


def test_partial_hands_the_set_on_with_the_camera_missing() -> None:
    synchronizer, sets = lossy("partial")
    assert [set(origins(made).values()) for made in sets] == [{0}, {1}, {2}]
    slot = sets[1].slots[4]
    assert (slot.state, slot.stamp_ns, slot.payload) == (CameraState.MISSING, 0, None)
    assert synchronizer.counters.partial == 1
    assert synchronizer.counters.missing[BACK_LEFT] == 1


def test_drop_hands_only_complete_sets_on() -> None:
    synchronizer, sets = lossy("drop")
    assert [set(origins(made).values()) for made in sets] == [{0}, {2}]
    assert (synchronizer.counters.dropped, synchronizer.counters.discarded) == (1, 5)


def test_hold_repeats_the_last_picture_and_says_so() -> None:
    synchronizer, sets = lossy("hold")
    slot = sets[1].slots[4]
    assert (slot.state, slot.payload) == (CameraState.HELD, (0, BACK_LEFT))
    assert slot.stamp_ns == sets[0].slots[4].stamp_ns
    assert not sets[1].complete
    assert synchronizer.counters.held == 1


def test_hold_does_not_repeat_a_picture_that_is_too_old() -> None:
    synchronizer, sets = lossy("hold", max_hold_s=0.05)
    assert sets[1].slots[4].state is CameraState.MISSING
    assert (synchronizer.counters.held, synchronizer.counters.partial) == (0, 1)


def test_hold_repeats_the_pictures_of_a_camera_that_is_always_too_late() -> None:
    arrivals = [
        replace(a, now_ns=a.now_ns + 150 * MS) if a.camera == BACK_LEFT else a
        for a in drive(range(0, 1000, 100))
    ]
    arrivals.sort(key=lambda a: a.now_ns)
    synchronizer = Synchronizer(replace(NUSCENES, policy="hold"))
    sets = run(synchronizer, arrivals)
    later = [made.slots[4] for made in sets[3:]]
    assert {slot.state for slot in later} == {CameraState.HELD}
    assert len({slot.stamp_ns for slot in later}) == len(later), "the newest it has, each time"
    assert synchronizer.counters.late == 10


def test_blank_fills_in_nothing_but_says_so() -> None:
    synchronizer, sets = lossy("blank")
    slot = sets[1].slots[4]
    assert (slot.state, slot.stamp_ns, slot.payload) == (CameraState.BLANK, 0, None)
    assert synchronizer.counters.blanked == 1


@pytest.mark.parametrize("policy", ["drop", "hold", "blank", "partial"])
def test_a_set_waits_for_its_deadline_and_no_longer(policy: str) -> None:
    synchronizer = Synchronizer(replace(NUSCENES, policy=policy, deadline_s=0.1))
    arrivals = [a for a in drive([0]) if a.camera != BACK_LEFT]
    assert run(synchronizer, arrivals, finish=False) == []
    deadline_ns = arrivals[0].now_ns + 100 * MS
    assert synchronizer.next_deadline_ns() == deadline_ns
    assert synchronizer.poll(deadline_ns - 1) == []
    assert len(synchronizer.poll(deadline_ns)) == (policy != "drop")
    assert synchronizer.counters.deadline == 1


def test_without_the_front_camera_the_next_present_one_is_the_reference() -> None:
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, [a for a in drive(NUSCENES_STARTS_MS) if a.camera != FRONT])
    assert [set(origins(made).values()) for made in sets] == [{i} for i in range(len(NUSCENES_STARTS_MS))]
    assert {made.reference_camera for made in sets} == {"cam_front_right"}
    assert sets[0].t0_ns == START_NS + 7_879_000
    check_promises(sets, synchronizer.counters)


# --- pictures that come late, twice, or make no sense


def test_a_picture_after_its_set_was_closed_is_late_and_makes_no_set_of_its_own() -> None:
    arrivals = drive([0, 100])
    straggler = next(a for a in arrivals if a.payload == (0, BACK_LEFT))
    rest = [a for a in arrivals if a is not straggler]
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, [*rest, replace(straggler, now_ns=rest[-1].now_ns + 20 * MS)])
    assert [made.complete for made in sets] == [False, True]
    assert synchronizer.counters.late == 1
    check_promises(sets, synchronizer.counters)


def test_duplicates_are_counted_and_dropped() -> None:
    arrivals = [twice for a in drive([0, 100]) for twice in (a, a)]
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, arrivals)
    assert [made.complete for made in sets] == [True, True]
    assert synchronizer.counters.duplicate == 12


def test_a_camera_out_of_order_is_counted_and_used() -> None:
    times = {(0, BACK_LEFT): START_NS + 105 * MS, (1, BACK_LEFT): START_NS + 40 * MS}
    arrivals = [replace(a, now_ns=times.get(a.payload, a.now_ns)) for a in drive([0, 100])]
    synchronizer = Synchronizer(replace(NUSCENES, deadline_s=0.3))
    sets = run(synchronizer, sorted(arrivals, key=lambda a: a.now_ns))
    assert [set(origins(made).values()) for made in sets] == [{0}, {1}]
    assert all(made.complete for made in sets)
    assert synchronizer.counters.out_of_order == 1


def test_unknown_cameras_and_empty_stamps_are_counted_not_raised() -> None:
    synchronizer = Synchronizer(NUSCENES)
    assert synchronizer.add("cam_roof", START_NS, None, START_NS) == []
    assert synchronizer.add(FRONT, 0, None, START_NS) == []
    counters = synchronizer.counters
    assert (counters.unknown_camera, counters.unstamped, counters.time_jumps) == (1, 1, 0)


def test_waiting_sets_are_bounded() -> None:
    synchronizer = Synchronizer(replace(NUSCENES, max_pending_sets=3, deadline_s=5.0))
    sets = run(synchronizer, [a for a in drive(range(0, 2000, 100)) if a.camera == FRONT], finish=False)
    assert len(sets) == 17
    assert synchronizer.counters.pending == 3
    assert synchronizer.counters.overflow == 17


def test_a_later_complete_set_closes_the_ones_before_it() -> None:
    arrivals = [a for a in drive([0, 50]) if a.payload != (0, FRONT)]
    synchronizer = Synchronizer(replace(NUSCENES, deadline_s=1.0))
    sets = run(synchronizer, arrivals, finish=False)
    assert [made.complete for made in sets] == [False, True]
    assert synchronizer.counters.overtaken == 1


# --- the four silences of message_filters, and time


def test_one_dead_camera_silences_nothing() -> None:
    """message_filters: 0 callbacks in 200 frames."""
    arrivals = [a for a in drive(range(0, 20_000, 100)) if a.camera != BACK_LEFT]
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, arrivals)
    assert len(sets) == 200
    assert all(made.slots[4].state is CameraState.MISSING for made in sets)


def test_a_loop_after_a_dropout_silences_nothing() -> None:
    """message_filters: 10 callbacks of 100 in the second pass, its queues full of the end of the first."""
    first = [a for a in drive(range(0, 10_000, 100)) if a.camera != BACK_LEFT or a.payload[0] < 89]
    shift_ns = 11_000 * MS
    second = [replace(a, now_ns=a.now_ns + shift_ns) for a in drive(range(0, 10_000, 100))]
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, [*first, *second])
    loop = [made for made in sets[100:] if made.complete]
    assert len(loop) == 100
    assert [made.after_reset for made in loop] == [True] + [False] * 99
    assert synchronizer.counters.time_jumps == 1
    assert synchronizer.last_reset_reason == "cam_front_left jumped back by 9.900 s"


def test_a_consumer_that_raises_silences_nothing() -> None:
    """message_filters: the lock is held for ever."""
    synchronizer, made = Synchronizer(NUSCENES), 0
    for arrival in drive(range(0, 1000, 100)):
        try:
            for _ in synchronizer.add(arrival.camera, arrival.stamp_ns, None, arrival.now_ns):
                made += 1
                raise RuntimeError("consumer")
        except RuntimeError:
            pass
    assert made == 10


def test_one_wild_stamp_in_the_future_silences_nothing() -> None:
    """Neither its own camera nor, once that is dead, the others."""
    wild = replace(drive([0])[0], camera=BACK_LEFT, stamp_ns=START_NS + 3600 * 1000 * MS)
    rest = [replace(a, now_ns=a.now_ns + 200 * MS) for a in drive(range(100, 5000, 100))]
    for kept in (rest, [a for a in rest if a.camera != BACK_LEFT]):
        synchronizer = Synchronizer(NUSCENES)
        sets = run(synchronizer, [wild, *kept])
        good = [made for made in sets if made.t0_ns < wild.stamp_ns]
        assert len(good) >= 46
        assert synchronizer.counters.time_jumps == 1
        assert not any(made.after_reset for made in good[1:]), "memory is not cleared again and again"


def test_a_slow_camera_is_late_and_no_time_jump() -> None:
    arrivals = [
        replace(a, now_ns=a.now_ns + 1500 * MS) if a.camera == BACK_LEFT else a
        for a in drive(range(0, 6000, 100))
    ]
    synchronizer = Synchronizer(NUSCENES)
    sets = run(synchronizer, sorted(arrivals, key=lambda a: a.now_ns))
    assert synchronizer.counters.time_jumps == 0
    assert synchronizer.counters.late == 60
    assert len(sets) == 60


def test_a_clock_that_jumps_back_leaves_nothing_waiting_for_a_future_that_is_past() -> None:
    synchronizer = Synchronizer(NUSCENES)
    run(synchronizer, [a for a in drive([0]) if a.camera != FRONT], finish=False)
    now_ns = START_NS - 50_000 * MS
    assert synchronizer.poll(now_ns) == []
    counters = synchronizer.counters
    assert (counters.time_jumps, counters.pending, counters.discarded) == (1, 0, 5)
    assert synchronizer.last_reset_reason.startswith("the clock jumped back by 50.0")


def test_a_clock_read_a_little_too_early_is_no_jump() -> None:
    synchronizer = Synchronizer(NUSCENES)
    arrivals = drive([0])
    synchronizer.poll(arrivals[-1].now_ns + 10 * MS)
    assert len(run(synchronizer, arrivals)) == 1
    assert synchronizer.counters.time_jumps == 0


def test_a_long_gap_says_that_memory_is_old() -> None:
    synchronizer = Synchronizer(replace(NUSCENES, max_gap_s=3.0))
    sets = run(synchronizer, drive([0, 2900, 6000, 6100]))
    assert [made.after_reset for made in sets] == [False, False, True, False]
    assert synchronizer.counters.gaps == 1


def test_reset_forgets_and_marks_the_next_set() -> None:
    synchronizer = Synchronizer(NUSCENES)
    arrivals = drive([0, 100])
    run(synchronizer, arrivals[:3], finish=False)
    synchronizer.reset("calibration changed")
    (made,) = run(synchronizer, arrivals[6:])
    assert made.after_reset
    assert made.complete
    assert (synchronizer.counters.resets, synchronizer.counters.time_jumps) == (1, 0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["drop", "hold", "blank", "partial"]))
def test_garbage_breaks_no_promise(seed: int, policy: str) -> None:
    """Random cameras, stamps and clocks, jumps both ways: the books balance and nothing grows."""
    rng = np.random.default_rng(seed)
    config = replace(NUSCENES, policy=policy, max_pending_sets=3)
    synchronizer = Synchronizer(config)
    now_ns, sets = START_NS, []
    for _ in range(120):
        now_ns += int(rng.choice([0, 10, 90, -30, 4000, -9000], p=[0.2, 0.4, 0.3, 0.06, 0.02, 0.02])) * MS
        stamp_ns = now_ns + int(rng.choice([0, -20, 60, -300, 8000, -now_ns // MS])) * MS
        sets += synchronizer.add(str(rng.choice([*CAMERA_NAMES, "x"])), stamp_ns, None, now_ns)
        assert synchronizer.counters.pending <= 3 * len(CAMERA_NAMES)
    assert all(a.t0_ns < b.t0_ns or b.after_reset for a, b in pairwise(sets))
    check_books(sets, synchronizer.counters)
    assert synchronizer.counters.pictures == 120


# --- settings and diagnosis


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SynchronizerConfig(cameras=()), r"cameras is \(\), wanted at least one, each once"),
        (SynchronizerConfig(cameras=("a", "a")), r"cameras is \('a', 'a'\), wanted at least one"),
        (
            SynchronizerConfig(cameras=("a", "b"), phases_s=(0.0,)),
            r"phases_s has 1 values for 2 cameras \(a, b\), wanted one for each, or none",
        ),
        (
            SynchronizerConfig(cameras=("a",), stamp_offsets_s=(0.0, 0.1)),
            r"stamp_offsets_s has 2 values for 1 cameras \(a\)",
        ),
    ],
)
def test_impossible_rigs_are_refused(config: SynchronizerConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Synchronizer(config)


def test_counters_are_flat_for_diagnostics() -> None:
    synchronizer, _ = lossy("partial")
    flat = synchronizer.counters.as_dict()
    assert flat["sync.partial"] == "1"
    assert flat[f"sync.missing.{BACK_LEFT}"] == "1"
    assert all(isinstance(value, str) for value in flat.values())
