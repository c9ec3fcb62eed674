"""The process of one training job: `python -m mlpkit.training CHANNEL`, started by `local.Trainer` only."""

from mlpkit.training.local import main

main()
