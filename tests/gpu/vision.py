"""A model of 256 MiB on a GPU, which says where it is."""

from __future__ import annotations

import os

import torch

from mlpkit import App, ModelDir

app = App("vision")
_NUMBERS = 64 << 20
"""As many of 4 bytes are 256 MiB."""


@app.train(gpus=1)
def train(out: ModelDir) -> None:
    weights = torch.ones(_NUMBERS, device="cuda")
    torch.save(weights.mean().cpu(), out / "mean.pt")


@app.load(gpus=0.5, replicas=2)
def load(files: ModelDir) -> torch.Tensor:
    return torch.full((_NUMBERS,), float(torch.load(files / "mean.pt")), device="cuda")


@app.predict
def predict(model: torch.Tensor, features: dict[str, float]) -> dict[str, object]:
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    return {"sum": float(model[:100].sum()) * features["factor"], "device": device, "pid": os.getpid()}
