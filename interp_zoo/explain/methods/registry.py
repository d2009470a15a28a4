"""The registry of methods: what `list_methods`, the command line, `compare`, the recipes and the tests read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from torch import Tensor, nn

from interp_zoo.words import nearest

# (anatomy, pixels, target, **options) -> maps (B, h, w), not yet rectified, upsampled or scaled
MethodFunction = Callable[..., Tensor]
Watch = Callable[[nn.Module], Sequence[nn.Module]]


class UnsuitableModel(ValueError):
    """The model has not what a method needs: `compare` leaves the method out, others see the error."""


@dataclass(frozen=True)
class Method:
    """One method of explanation.

    Attributes:
        name: the name that users give.
        function: (anatomy, pixels, target, **options) to maps (B, h, w).
        paper: its citation.
        cost: passes a picture, in words; C is the number of A's channels, hw of its places.
        needs: what a model must have, "" for nothing.
        aliases: other names that users give.
        watch: the modules of a model whose inputs the method reads (`Split.watched`), or None.
        floor: whether its maps say nothing of what the model sees, so that metrics are to rank it last.
        at_picture: whether it looks at the picture (or at nothing), and not at a layer.
        slow: whether a map takes so many passes that nobody should wait for it without having asked for it by name.
    """

    name: str
    function: MethodFunction
    paper: str
    cost: str
    needs: str = ""
    aliases: tuple[str, ...] = ()
    watch: Watch | None = None
    floor: bool = False
    at_picture: bool = False
    slow: bool = False

    @property
    def takes_layer(self) -> bool:
        """Whether the user can say where the model is cut."""
        return not (self.at_picture or self.watch)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options and their defaults, read off the function's signature."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def check(self, options: dict[str, Any]) -> None:
        """Raises TypeError if an option is none of this method's, or of another kind than its default."""
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(f"{k}={v!r}" for k, v in self.options.items()) or "none"
                raise TypeError(
                    f'method "{self.name}" has no option `{name}`{nearest(name, list(self.options))}; it has: {known}'
                )
            default = self.options[name]
            hint = get_type_hints(self.function)[name]
            kinds = (type(default),) if default is not None else get_args(hint)
            kinds += (int,) if float in kinds else ()
            if not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds):
                like = repr(default) if default is not None else " or ".join(kind.__name__ for kind in kinds)
                like = str(hint) if default == () else like  # nothing shows no likeness
                raise TypeError(f'`{name}` of method "{self.name}" must be like {like}, not {value!r}')


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    paper: str,
    cost: str,
    needs: str = "",
    aliases: tuple[str, ...] = (),
    watch: Watch | None = None,
    floor: bool = False,
    at_picture: bool = False,
    slow: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Registers the decorated function as a method under `name`; see `Method` for the rest.

    Raises:
        ValueError: if the name, or an alias, is taken by another method.
    """

    def add(function: MethodFunction) -> MethodFunction:
        for word in (name, *aliases):
            if any(_plain(word) in map(_plain, (m.name, *m.aliases)) for m in _METHODS.values()):
                raise ValueError(f'`name` "{word}" is taken by another method: choose another')
        _METHODS[name] = Method(name, function, paper, cost, needs, aliases, watch, floor, at_picture, slow)
        return function

    return add


def unregister(name: str) -> None:
    """Removes a method, for tests and notebooks that define one again."""
    _METHODS.pop(name, None)


def list_methods() -> list[str]:
    """The names of all methods, in alphabetical order."""
    return sorted(_METHODS)


def _plain(name: str) -> str:
    """How names are compared: "Grad-CAM" and "grad_cam" are "gradcam"."""
    return re.sub(r"[-_ ]", "", str(name).lower())


def get_method(name: str) -> Method:
    """The method of that name or alias.

    Raises:
        ValueError: if there is none; names the nearest.
    """
    for method in _METHODS.values():
        if _plain(name) in map(_plain, (method.name, *method.aliases)):
            return method
    words = {word: m.name for m in _METHODS.values() for word in (m.name, *m.aliases)}
    raise ValueError(f'`method` "{name}" is unknown{nearest(_plain(name), words)}; known: {", ".join(list_methods())}')
