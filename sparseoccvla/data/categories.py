"""Annotation categories of nuScenes as occupancy classes (the table of Occ3D and nuScenes-lidarseg)."""

from sparseoccvla.contracts import CLASS_NAMES

_OTHERS = CLASS_NAMES.index("others")

# What is not listed is "others": animals, strollers, wheelchairs, debris, racks, ambulances, police cars.
_CLASS_NAME_OF = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def class_of_category(category: str) -> int:
    """Class 0 to 16 of an annotation category such as "vehicle.bus.rigid"."""
    name = _CLASS_NAME_OF.get(category)
    return _OTHERS if name is None else CLASS_NAMES.index(name)
