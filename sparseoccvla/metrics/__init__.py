"""Figures under named conventions: `docs/metrics.md` says what each counts. Never imports a network.

A metric is an accumulator: `update(...)` takes one sample, `result()` gives the figures of all samples
so far, `merge(...)` adds another accumulator of the same settings, so that scenes can be scored apart,
in any order, and resampled for an interval.
"""
