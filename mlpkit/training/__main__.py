"""The process of one training job, started by `local.py` only.

Its command is `python -m mlpkit.training CHANNEL`.
"""

from mlpkit.training.local import main

main()
