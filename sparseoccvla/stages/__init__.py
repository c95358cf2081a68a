"""What each node does, without ROS: the nodes only wire these to topics."""
