"""SparseOccVLA: six cameras become sparse 3-D occupancy, language reasoning and a trajectory.

This package is pure: networks, data, metrics and the driving world, never ROS.
`sparseoccvla_ros` wires it to topics.
"""
