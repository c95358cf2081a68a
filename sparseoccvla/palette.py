"""One color for each class, used by every picture, cloud and page."""

import numpy as np

from sparseoccvla.contracts import NUM_CLASSES

# Road users are warm, ground is grey and earthy, structures are cool: what moves stands out.
CLASS_COLORS_RGB = np.array(
    [
        (108, 108, 108),  # others
        (240, 120, 60),  # barrier
        (235, 60, 150),  # bicycle
        (250, 205, 60),  # bus
        (30, 150, 245),  # car
        (225, 160, 20),  # construction_vehicle
        (200, 70, 225),  # motorcycle
        (245, 50, 50),  # pedestrian
        (255, 150, 40),  # traffic_cone
        (150, 90, 60),  # trailer
        (135, 80, 235),  # truck
        (92, 96, 104),  # driveable_surface
        (150, 135, 120),  # other_flat
        (180, 172, 160),  # sidewalk
        (150, 185, 105),  # terrain
        (125, 150, 178),  # manmade
        (50, 135, 75),  # vegetation
    ],
    np.uint8,
)
assert len(CLASS_COLORS_RGB) == NUM_CLASSES
