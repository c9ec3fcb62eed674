"""`python -m mlpkit`: the command line."""

from mlpkit.cli import main

if __name__ == "__main__":
    main()
