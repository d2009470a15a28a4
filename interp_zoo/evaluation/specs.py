"""Methods as users write them on a command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interp_zoo.explain.methods import get_method, list_methods

_COMMA = re.compile(r",(?![^()]*\))")  # those within brackets are an option's own


@dataclass(frozen=True)
class Spec:
    """A method as the user asked for it.

    Attributes:
        text: the text of it, which names it in the table.
        name: the method's name.
        options: its options, and `layer` if it was asked for.
    """

    text: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_methods(text: str) -> list[Spec]:
    """Methods from a text such as "gradcam:layer=layer3,opticam:iterations=50"; the floors are always among them.

    Also "all", and "quick" for all that are not slow.

    Raises:
        ValueError: if there is none, or one is unknown.
        TypeError: if a method has no such option.
    """
    words = [word.strip() for word in _COMMA.split(text) if word.strip()]
    if words in (["all"], ["quick"]):
        words = [name for name in list_methods() if words == ["all"] or not get_method(name).slow]
    if not words:
        raise ValueError("`methods` is empty: name some with commas between, or quick, or all")
    specs: dict[str, Spec] = {}
    for word in [*words, *(name for name in list_methods() if get_method(name).floor)]:
        name, *pairs = word.split(":")
        method = get_method(name)
        options = dict(_option(pair) for pair in pairs)
        layer = options.get("layer", "")
        if not isinstance(layer, str) or (layer and not method.takes_layer):
            raise TypeError(
                f'`layer` of method "{method.name}" must be the name of a layer, of a method that takes one'
            )
        method.check({key: value for key, value in options.items() if key != "layer"})
        label = ":".join([method.name, *pairs])
        specs[label] = Spec(label, method.name, options)
    return list(specs.values())


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f'`methods` has the option "{text}", but it must be name=value')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
