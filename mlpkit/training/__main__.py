"""The process of one training job: `python -m mlpkit.training CHANNEL`, started by `trainer.Trainer` only."""

from mlpkit.training.trainer import main

main()
