"""`python -m qnode` and the `qnode` command."""

from qnode.cli import main

if __name__ == "__main__":
    main()
