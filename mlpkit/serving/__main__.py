"""The process of a worker: `python -m mlpkit.serving`.

Only the server starts it.
"""

from mlpkit.serving.runtime import main

main()
