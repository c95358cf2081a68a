"""`sparseoccvla VERB`: every command of the project, none of which needs ROS.

Exit codes: 0 good, 2 bad input. Machine-readable results are one JSON object on stdout;
everything for people goes to stderr.
"""

from __future__ import annotations

import sys

import typer

from sparseoccvla.data.cli import app as bag_app
from sparseoccvla.errors import InputError
from sparseoccvla.metrics.cli import app as score_app

app = typer.Typer(
    name="sparseoccvla",
    help="Sparse occupancy, language reasoning and planning from cameras.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bag_app, name="bag")
app.add_typer(score_app, name="score")


def main() -> None:
    """Run the command line; an `InputError` becomes one line on stderr and exit code 2."""
    try:
        app(prog_name="sparseoccvla")
    except InputError as error:
        print(f"sparseoccvla: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
