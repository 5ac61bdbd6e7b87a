"""Checks a Serve configuration strictly, before it is deployed: Ray itself ignores misspelt names.

python -m serve.check serve/config.yaml
"""

from __future__ import annotations

import argparse
import difflib
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from serve.settings import parse_settings

IMPORT_PATH = "serve.app:build"
USER_ERROR = 2


def check(path: Path) -> list[str]:
    """Return what is wrong with a configuration file; nothing if it is right."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        return [f"{path}: cannot be read as YAML: {error}"]
    if not isinstance(content, dict):
        return [f"{path}: expected a mapping, got {type(content).__name__}"]
    mistakes = list(_unknown_names(content, ServeDeploySchema, ""))
    try:
        ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        mistakes += [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    for application in content.get("applications") or []:
        if not isinstance(application, dict) or application.get("import_path") != IMPORT_PATH:
            continue
        try:
            parse_settings(application.get("args") or {})
        except ValueError as error:
            mistakes.append(f"applications.{application.get('name', '?')}.args: {error}")
    return [f"{path}: {mistake}" for mistake in mistakes]


def _unknown_names(content: dict[str, Any], model: type[BaseModel], place: str) -> Iterator[str]:
    """Yield the names of a mapping, and of those within, that Ray's schema does not have."""
    for name, value in content.items():
        field = model.model_fields.get(name)
        if field is None:
            near = difflib.get_close_matches(name, model.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{place}{name}: there is no such name{hint}"
            continue
        inner = next(_models_in(field.annotation), None)
        if inner is None:
            continue
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict):
                index = f".{number}" if isinstance(value, list) else ""
                yield from _unknown_names(part, inner, f"{place}{name}{index}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that a type is made of, such as X in list[X] | None."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def main() -> int:
    """Check a file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="the configuration (YAML)")
    path = parser.parse_args().path
    mistakes = check(path)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if not mistakes:
        print(f"{path}: right")
    return USER_ERROR if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
