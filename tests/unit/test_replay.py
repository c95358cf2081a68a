"""Replay: what is due when, with rate, offset, length, loop and /clock."""

import pytest

from sparseoccvla.config import ConfigError, ReplayConfig
from sparseoccvla.data.bag import RawMessage
from sparseoccvla.data.replay import Span, pass_length_s, plan_pass
from sparseoccvla.errors import InputError

START = 100_000_000_000
RECORDED = [
    RawMessage("/tf_static", START, b"static"),
    RawMessage("/odom", START + 10_000_000, b"0"),
    RawMessage("/odom", START + 1_000_000_000, b"1"),
    RawMessage("/odom", START + 1_510_000_000, b"2"),
    RawMessage("/odom", START + 2_000_000_000, b"3"),
]


def recorded(topics, first_ns, stop_ns):
    return [
        message
        for message in RECORDED
        if (not topics or message.topic in topics)
        and (first_ns is None or message.stamp_ns >= first_ns)
        and (stop_ns is None or message.stamp_ns < stop_ns)
    ]


def planned(**settings):
    config = ReplayConfig(**settings)
    span = Span.of(RECORDED[0].stamp_ns, RECORDED[-1].stamp_ns, config)
    return list(plan_pass(span, config, frozenset({"/tf_static"}), recorded))


def published(plan):
    return [(round(due.after_s, 6), due.message.data) for due in plan if due.message]


@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_rate_stretches_time_but_never_a_stamp(rate):
    plan = planned(rate=rate)
    assert published(plan) == [
        (after / rate, data)
        for after, data in [(0, b"static"), (0.01, b"0"), (1, b"1"), (1.51, b"2"), (2, b"3")]
    ]
    assert [due.message for due in plan if due.message] == RECORDED


def test_offset_and_duration_cut_but_latched_messages_come_all_the_same():
    plan = planned(start_s=1.0, duration_s=0.6)
    assert published(plan) == [(0, b"static"), (0, b"1"), (0.51, b"2")]


def test_nothing_latched_is_doubled_without_an_offset():
    assert [data for _, data in published(planned())].count(b"static") == 1


@pytest.mark.parametrize("settings", [{}, {"rate": 0.5}, {"rate": 7.0}, {"clock_hz": 3.0}])
def test_clock_runs_forward_and_is_never_behind_a_message(settings):
    plan = planned(**settings)
    assert [due.after_s for due in plan] == sorted(due.after_s for due in plan)
    clock = START - 1
    for due in plan:
        if due.message is None:
            assert due.clock_ns > clock
            clock = due.clock_ns
        assert clock >= due.clock_ns


def test_clock_ticks_at_its_rate_in_steady_time():
    ticks = [due for due in planned(rate=2.0, clock_hz=10.0, tail_s=0.0) if due.message is None]
    regular = [due for due in ticks if due.clock_ns % 200_000_000 == 0]
    assert [round(due.after_s, 9) for due in regular] == [round(k / 10, 9) for k in range(11)]
    assert len(ticks) == 11 + 2  # and before the two messages that lie between ticks


def test_clock_goes_on_after_the_last_message_and_a_new_pass_jumps_back():
    plan = planned(tail_s=1.0, clock_hz=10.0)
    assert plan[-1].clock_ns == START + 3_000_000_000
    assert planned(tail_s=1.0, clock_hz=10.0)[0].clock_ns == START
    span = Span(START, START + 2_000_000_000)
    assert pass_length_s(span, ReplayConfig(tail_s=1.0)) == 3.0
    assert pass_length_s(span, ReplayConfig(rate=2.0, tail_s=0.0)) == 1.0


def test_an_offset_beyond_the_bag_and_impossible_settings_are_refused():
    with pytest.raises(InputError, match=r"start_s is 3 s, the bag is only 2.000 s long"):
        planned(start_s=3.0)
    with pytest.raises(ConfigError, match=r"ReplayConfig.rate is 0.0, wanted 0.01 to 100"):
        ReplayConfig(rate=0.0)
