"""The process of a worker: `python -m mlpkit.serving`, started by the server only."""

from mlpkit.serving.runtime import main

main()
