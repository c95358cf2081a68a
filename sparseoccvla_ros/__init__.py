"""ROS 2 wiring of the stack. Logic lives in `sparseoccvla`."""
