"""Flags from a configuration file and the command line, with errors of one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from interp_zoo.words import nearest


class Flags(argparse.ArgumentParser):
    """An argument parser whose `parse` reads --config, a YAML file of flags, below the command line.

    A file's keys are the flags' names; they are checked as flags are.

    Args:
        configs: the folder of files that may be named without folder and ending.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, configs: Path, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)
        self.configs = configs
        self.add_argument("--config", "-c", help=f"a YAML file of flags, or one of {', '.join(self._known())}")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags' values.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a flag, a key or a value is not one that exists.
        """
        given, _ = self._split(argv)
        lines = self._from_file(given) if given else []
        args, unknown = self.parse_known_args([*lines, *argv])
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            raise ValueError(f'"{unknown[0]}" is no flag{nearest(unknown[0], flags)}; --help lists all')
        return args

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print with a page of usage."""
        raise ValueError(message)

    def _split(self, argv: Sequence[str]) -> tuple[str | None, list[str]]:
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.error = self.error  # type: ignore[method-assign]
        first.add_argument("--config", "-c")
        known, rest = first.parse_known_args(argv)
        return known.config, rest

    def _known(self) -> list[str]:
        return sorted(file.stem for file in self.configs.glob("*.yaml"))

    def _from_file(self, name: str) -> list[str]:
        file = Path(name) if Path(name).suffix else self.configs / f"{name}.yaml"
        if not file.is_file():
            known = self._known()
            raise FileNotFoundError(
                f'`config` "{name}" does not exist{nearest(name, known)}; give a file, or one of {", ".join(known)}'
            )
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f'`config` "{file}" is no YAML file: {" ".join(str(error).split())}') from None
        if not isinstance(found, dict):
            raise ValueError(f'`config` "{file}" must hold keys with values, "lr: 0.1" for one')
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        lines: list[str] = []
        for key, value in found.items():
            if key not in actions:
                raise ValueError(
                    f'`config` "{file}" has the key "{key}", which is no flag{nearest(str(key), list(actions))}'
                )
            lines += _as_flags(actions[key], value)
        return lines


def _as_flags(action: argparse.Action, value: Any) -> list[str]:
    """A key's value as it would stand on the command line."""
    flag = next(name for name in action.option_strings if name.startswith("--"))
    if value is None:
        return []
    if isinstance(value, bool):
        if isinstance(action, argparse.BooleanOptionalAction):
            return [flag if value else flag.replace("--", "--no-", 1)]
        if not value and "no" in (action.choices or ()):
            return [f"{flag}=no"]  # which YAML takes for false
        if not value and action.nargs not in (0, "?"):
            raise ValueError(f"`{action.dest}` is false, but takes a value: give one, or leave it out")
        return [flag] if value else []
    if isinstance(value, dict):
        return [flag, *(f"{key}={part}" for key, part in value.items())]
    if isinstance(value, list) and action.nargs is None:
        raise ValueError(f"`{action.dest}` is the list {value}, but takes one value")
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]
