"""Starlette: one route, the model called on the loop."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.benchmarks.bare import answer


async def predict(request: Request) -> Response:
    return Response(answer(await request.body()), media_type="application/json")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
