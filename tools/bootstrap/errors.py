"""What `make setup` says when it cannot go on."""


class SetupError(Exception):
    """Something about this machine or this tree is in the way; the text says what, and what mends it."""
