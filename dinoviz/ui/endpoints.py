"""Names of the API's parameters, where several handlers take the values of the same controls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields


def takes_settings(*settings: type) -> Callable[[Callable], Callable]:
    """Decorate a handler so that its `*values` appear in the API as the fields of settings dataclasses.

    Gradio names an endpoint's parameters after those of its handler, and cannot name `*values`.
    """
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def decorate(handler: Callable) -> Callable:
        signature = inspect.signature(handler)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is positional]
        named = [
            inspect.Parameter(each.name, positional, annotation=each.type) for kind in settings for each in fields(kind)
        ]
        handler.__signature__ = signature.replace(parameters=own + named)
        return handler

    return decorate
