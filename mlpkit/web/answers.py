"""The answers of the protocol: their words, bytes, status codes and headers.

Source: `tests/wire/PROTOCOL.md`, section 1.1; its section 8 says where mlpkit answers better than the original.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlpkit.errors import BodyTooLarge, MalformedBody, MlpkitError, Overloaded, Unauthorized

if TYPE_CHECKING:
    from mlpkit.settings import Settings

_ALWAYS_TRUE_CODE = (BodyTooLarge, MalformedBody, Unauthorized)


@dataclass(frozen=True)
class Answer:
    """An answer, ready to be sent; `word` is its `status` for the access log."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"
    word: str = "success"


def success(data: object = None, **more: object) -> Answer:
    """`{"status": "success"}`, with `data` where it is given."""
    content = {"status": "success"} if data is None else {"status": "success", "data": data}
    return Answer(to_json({**content, **more}))


def failure(error: BaseException, settings: Settings) -> Answer:
    """The answer that an error stands for; one that is not mlpkit's own tells nothing but that it happened.

    Failures are HTTP 200 unless `MLPKIT_HTTP_ERRORS` is `http`; a request that reached no handler has its true code.
    """
    known = isinstance(error, MlpkitError)
    word = error.status if isinstance(error, MlpkitError) else "fail"
    content = {"status": word, "message": str(error) if known else "internal error: the service's log tells more"}
    if word == "fail":
        content["trace"] = _trace(error) if settings.debug else ""
    true_code = settings.http_errors == "http" or isinstance(error, _ALWAYS_TRUE_CODE)
    status = (error.http_status if isinstance(error, MlpkitError) else 500) if true_code else 200
    # Where all failures are HTTP 200 with free text, this tells `mlpkit.Client` which exception to raise.
    headers = [(b"x-mlpkit-error", type(error).__name__.encode())] if known else []
    if isinstance(error, Overloaded) and true_code:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if isinstance(error, (BodyTooLarge, MalformedBody)):
        # The rest of its body may still be on the way, and would be read to its end for nothing.
        headers.append((b"connection", b"close"))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return Answer(to_json(content), status, tuple(headers), word=word)


def path_not_found(settings: Settings) -> Answer:
    """The original's words for a path that it does not have."""
    message = (
        "404 Not Found: The requested URL was not found on the server. "
        "If you entered the URL manually please check your spelling and try again."
    )
    status = 404 if settings.http_errors == "http" else 200
    return Answer(to_json({"message": message, "status": "fail"}), status, word="fail")


def other_method(method: str, wanted: Literal["GET", "POST"]) -> Answer | None:
    """The answer to OPTIONS and to a method that a path does not have; None where its handler is to answer."""
    if method == wanted:
        return None
    allowed = ("OPTIONS", "POST") if wanted == "POST" else ("GET", "HEAD", "OPTIONS")
    allow = (b"allow", ", ".join(allowed).encode())
    if method == "OPTIONS":
        return Answer(to_json({"status": "success"}), headers=(allow,))
    if method not in allowed:
        # The original's words, which have no `status`.
        body = to_json({"message": "The method is not allowed for the requested URL."})
        return Answer(body, 405, (allow,), word="fail")
    return None


def to_json(content: object) -> bytes:
    """JSON in the protocol's style: ASCII only, a space after comma and colon."""
    return json.dumps(content, allow_nan=False).encode()


def _trace(error: BaseException) -> str:
    own = getattr(error, "trace", "")
    return own or "".join(traceback.format_exception(type(error), error, error.__traceback__))
