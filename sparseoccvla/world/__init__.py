"""The procedural driving world: scenes, traffic, cameras, labels. No ROS."""
