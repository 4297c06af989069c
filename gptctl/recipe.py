"""Recipes: found by name or path, decoded strictly, any key of them overridden.

The types are `training.config`'s, so that what the laptop accepts is what the node runs.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptctl.errors import NotFoundError, UsageError
from gptctl.strict_toml import decode_table, nearest, read_toml
from training.config import Recipe

_SUFFIX = ".toml"


def recipe_names() -> list[str]:
    """The recipes that come with gptctl, smallest name first."""
    return sorted(path.stem for path in _bundled_folder().glob(f"*{_SUFFIX}"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a bundled recipe, or the user's own: what ends in .toml or has a `/`.

    Raises NotFoundError; UsageError where the path cannot even be looked at.
    """
    if name_or_path.endswith(_SUFFIX) or "/" in name_or_path:
        path = Path(name_or_path)
        try:
            is_there = path.exists()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {error.strerror}",
                hint="a recipe is one of the names in `gptctl recipes`, or the path of a TOML file",
            ) from error
        if not is_there:
            raise NotFoundError(
                f"there is no recipe file {path}",
                hint="`gptctl recipes show gpt2-124m > my.toml` writes one to start from",
            )
        return path
    names = recipe_names()
    if name_or_path not in names:
        near = nearest(name_or_path, names)
        raise NotFoundError(
            f"there is no recipe `{name_or_path}`" + (f"; nearest: `{near}`" if near else ""),
            hint="`gptctl recipes` lists them; a file of your own is given by its path, ./my.toml",
        )
    return _bundled_folder() / (name_or_path + _SUFFIX)


def read_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """(name, recipe), each of `overrides` (`train.max_lr=3e-4`) applied in turn.

    Raises NotFoundError; UsageError for a file or an override that makes no valid recipe.
    """
    path = find_recipe(name_or_path)
    table = read_toml(path)
    for override in overrides:
        _apply(table, override)

    def where(key: str) -> str:
        """What is to blame for `key`: the last override of it, or of a part of it, or the file."""
        for override in reversed(overrides):
            name = override.partition("=")[0].strip()
            if f"{key}.".startswith(f"{name}."):
                return f"`--set {override}`"
            if f"{name}.".startswith(f"{key}.") or not key:
                return f"{path} with `--set {override}`"
        return str(path)

    return path.stem, decode_table(table, Recipe, where=where)


def _bundled_folder() -> Path:
    """Inside the package once installed; beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one dotted key of `table` in place."""
    key, equals, raw = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all((*sections, name)):
        raise UsageError(
            f"`--set {override}` names no key and value",
            hint="for example `--set train.max_lr=3e-4`",
        )
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(
                f"`--set {override}`: `{section}` is a value, not a section",
                hint="`gptctl recipes show RECIPE` shows its sections and keys",
            )
    table[name] = _parse_value(raw.strip())


def _parse_value(raw: str) -> Any:
    """`raw` as TOML reads it; a bare word, which TOML would not take, is a string."""
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    return parsed["value"] if len(parsed) == 1 else raw
