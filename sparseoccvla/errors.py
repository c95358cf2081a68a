"""The one kind of error a user can mend."""


class InputError(ValueError):
    """Something given from outside is wrong.

    The text names the thing, what came, what was wanted and what to do. The command line prints it
    without a traceback and exits with 2; nodes count it and stay up.
    """
