"""`python -m sparseoccvla`."""

from sparseoccvla.cli import main

main()
