"""Graphs for other runtimes, and engines made from them. Never inside a node."""
