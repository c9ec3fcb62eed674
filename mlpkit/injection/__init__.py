"""From a handler's signature to a call plan, which is compiled once.

A parameter gets a field of the request by its name, a service by its type, or a dependency by its factory.

A plan is made when the app is built, so that every mistake in a signature is found at start-up; calling it is cheap.
User code runs behind `user_code`, the one boundary at which its exceptions (BaseException too) are caught.
"""

from mlpkit.injection.boundary import (
    END,
    async_user_code,
    calling_frame,
    calling_place,
    ending_forked_copies,
    is_importing,
    next_async_value,
    next_value,
    place_of_error,
    user_code,
    user_error,
    where,
)
from mlpkit.injection.declarations import (
    BATCHED,
    FIELDS,
    NULL,
    OBJECTS,
    OLD_NAMES,
    Depends,
    Fields,
    Services,
    service,
)
from mlpkit.injection.decoding import fits_request
from mlpkit.injection.plan import (
    Call,
    DependencyParameter,
    FieldParameter,
    Plan,
    ProcessScope,
    ServiceParameter,
    compile_plan,
    split_batch,
)

__all__ = [
    "BATCHED",
    "END",
    "FIELDS",
    "NULL",
    "OBJECTS",
    "OLD_NAMES",
    "Call",
    "DependencyParameter",
    "Depends",
    "FieldParameter",
    "Fields",
    "Plan",
    "ProcessScope",
    "ServiceParameter",
    "Services",
    "async_user_code",
    "calling_frame",
    "calling_place",
    "compile_plan",
    "ending_forked_copies",
    "fits_request",
    "is_importing",
    "next_async_value",
    "next_value",
    "place_of_error",
    "service",
    "split_batch",
    "user_code",
    "user_error",
    "where",
]
