"""How good a model is, on a data set or a bag: `sparseoccvla eval`. Metrics come from `metrics/`.

`runner.py` asks the model once about every keyframe and stores what it said; `occupancy.py`,
`forecast.py`, `planning.py` and `language.py` make figures of that beside rows that need no eyes;
`report.py` and `plots.py` show them. `bag.py` steps the cores of the nodes over a bag.
"""
