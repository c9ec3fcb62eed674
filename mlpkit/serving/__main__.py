"""The process of a worker: `python -m mlpkit.serving`, started by the server only."""

from mlpkit.serving.main import main

main()
