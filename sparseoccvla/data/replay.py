"""When each message of a bag is due: rate, start, length, loop and /clock, without clocks or threads.

A player asks `plan_pass` once for each pass over the bag and publishes every `Due` when its time has
come on a steady clock. Looping makes bag time jump back on purpose: consumers must notice, clear and go on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from sparseoccvla.config import ReplayConfig
from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.data.bag import RawMessage
from sparseoccvla.errors import InputError


@dataclass(frozen=True)
class Due:
    """One thing to publish: a message, or with none just a tick of /clock."""

    after_s: float  # since the pass began, on a steady clock
    clock_ns: int  # bag time of that moment
    message: RawMessage | None


@dataclass(frozen=True)
class Span:
    """The part of a bag that is played, in bag time; both ends are played."""

    start_ns: int
    end_ns: int

    @classmethod
    def of(cls, bag_start_ns: int, bag_end_ns: int, config: ReplayConfig) -> Span:
        """What `config` leaves of a bag.

        Raises:
            InputError: nothing.
        """
        start_ns = bag_start_ns + round(config.start_s * NS_PER_S)
        end_ns = bag_end_ns
        if start_ns > end_ns:
            length_s = (bag_end_ns - bag_start_ns) / NS_PER_S
            raise InputError(
                f"start_s is {config.start_s:g} s, the bag is only {length_s:.3f} s long; "
                "choose a smaller one"
            )
        if config.duration_s:
            end_ns = min(end_ns, start_ns + round(config.duration_s * NS_PER_S))
        return cls(start_ns, end_ns)


# As `BagReader.messages`: topics (none: all), first log time, log time to stop before.
OpenMessages = Callable[[Collection[str], int | None, int | None], Iterable[RawMessage]]


def plan_pass(
    span: Span, config: ReplayConfig, latched: Collection[str], messages: OpenMessages
) -> Iterator[Due]:
    """Everything due in one pass, in order.

    What was latched before the span comes first, at once: a vehicle that starts in the middle of a bag
    still needs its /tf_static. /clock ticks at `clock_hz` and right before any message it would lag
    behind, and goes on for `tail_s` after the last, so that timers and deadlines still fire.
    """
    if latched and config.start_s:
        for message in messages(latched, None, span.start_ns):
            yield Due(0.0, span.start_ns, message)
    ticks = _ticks(span, config)
    tick = next(ticks, None)
    clock_ns = span.start_ns - 1
    for message in messages((), span.start_ns, span.end_ns + 1):
        while tick is not None and tick.clock_ns <= message.stamp_ns:
            yield tick
            clock_ns = tick.clock_ns
            tick = next(ticks, None)
        after_s = (message.stamp_ns - span.start_ns) / (NS_PER_S * config.rate)
        if message.stamp_ns > clock_ns:
            clock_ns = message.stamp_ns
            yield Due(after_s, clock_ns, None)
        yield Due(after_s, message.stamp_ns, message)
    while tick is not None:
        yield tick
        tick = next(ticks, None)


def pass_length_s(span: Span, config: ReplayConfig) -> float:
    """Steady time from the beginning of one pass to that of the next."""
    return (span.end_ns - span.start_ns) / (NS_PER_S * config.rate) + config.tail_s


def _ticks(span: Span, config: ReplayConfig) -> Iterator[Due]:
    for number in range(int(pass_length_s(span, config) * config.clock_hz) + 1):
        after_s = number / config.clock_hz
        yield Due(after_s, span.start_ns + round(after_s * config.rate * NS_PER_S), None)
