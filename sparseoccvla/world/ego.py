"""The ego's body: a small electric car like those that recorded nuScenes."""

EGO_LENGTH_M = 4.084
EGO_WIDTH_M = 1.85
WHEELBASE_M = 2.588
EGO_CENTER_M = 1.38  # the box's center ahead of the rear axle
