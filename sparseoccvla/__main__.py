"""`python -m sparseoccvla`."""

from sparseoccvla.cli import main

if __name__ == "__main__":
    main()
