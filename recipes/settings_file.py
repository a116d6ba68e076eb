"""YAML settings with the line of every key, so that an error can name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokenizer.cli import UserError


@dataclass(frozen=True)
class SettingsFile:
    """A YAML file with the line of each of its keys, so that an error can name it."""

    path: Path
    value: dict[str, Any]
    lines: dict[tuple, int]

    @classmethod
    def read(cls, path: Path) -> SettingsFile:
        """Parse a file, `${...}` references resolved. Raises UserError with the line of what is no YAML."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:1: this is no text in UTF-8 ({error.reason}); save it as UTF-8") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            lines: dict[tuple, int] = {}
            _note_lines(node, (), lines, path)
            value = OmegaConf.to_container(OmegaConf.create(text), resolve=True) if node else None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"{path}:{line}: this is no YAML: {error.problem}") from None
        except OmegaConfBaseException as error:
            raise UserError(f"{path}: {str(error).strip().splitlines()[0]}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}:1: this file holds no mapping of keys to values")
        return cls(path, value, lines)

    def error(self, place: tuple, message: str) -> UserError:
        """The error to raise for the key at `place`, a path of keys and list indices; its line comes first."""
        while place and place not in self.lines:
            place = place[:-1]
        return UserError(f"{self.path}:{self.lines.get(place, 1)}: {message}")

    def mapping(self, place: tuple) -> dict[str, Any]:
        """The mapping at `place`, empty if there is none; UserError if something else stands there."""
        value: Any = self.value
        for key in place:
            value = value[key] if isinstance(value, list) else value.get(key, {})
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(place, f"{'.'.join(map(str, place))} must be a mapping of settings to values")
        return value

    def check_keys(self, place: tuple, known: set[str]) -> None:
        """UserError at the first key of the mapping at `place` that is not among `known`."""
        for key in self.mapping(place):
            if key not in known:
                raise self.error((*place, key), f"unknown key {key!r}; known are {', '.join(sorted(known))}")


def _note_lines(node: yaml.Node | None, place: tuple, lines: dict[tuple, int], path: Path) -> None:
    if node is None:
        return
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (*place, key.value) in lines:
                raise UserError(f"{path}:{key.start_mark.line + 1}: {key.value!r} stands here twice; keep one")
            lines[(*place, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*place, key.value), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*place, index), lines, path)
