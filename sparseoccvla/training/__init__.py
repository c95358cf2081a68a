"""Losses, data pipeline and the training loop."""
