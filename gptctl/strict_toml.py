"""TOML into frozen structs, strictly, with faults that a person can mend.

Each fault names where it stands, the dotted key and what is expected there; for a key that
nobody knows, the nearest one. Types and bounds are msgspec's; the words are ours. Knows
nothing of what the tables mean.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as schema

from gptctl.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)

_ABSENT = object()
_LOCATED = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?", re.DOTALL)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table. Raises UsageError naming file and line; FileNotFoundError if none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (at byte {error.start})", hint="save it as UTF-8"
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint="it must be a TOML file"
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = text.rstrip().count("\n") + 1
        reason = str(error).replace("at end of document", f"at the end, line {last}")
        raise UsageError(f"{path} is not TOML: {reason}", hint="the format: https://toml.io") from (
            error
        )


def decode_table(table: dict[str, Any], kind: type[T], *, where: Callable[[str], str]) -> T:
    """`table` as a `kind`; `where` names what set a dotted key (`""`: the whole table).

    Raises UsageError. Unknown keys are reported all at once and before anything else, since a
    misspelt key is missing, too.
    """
    root = schema.type_info(kind)
    entries = list(_walk(table, root, ""))
    known = {key: expected for key, expected, _ in entries if expected is not None}
    unknown = [key for key, expected, _ in entries if expected is None]
    if unknown:
        raise UsageError(
            "\n".join(f"{where(key)}: unknown key `{key}`{_suggest(key, known)}" for key in unknown)
        )
    missing = [key for key, _, value in entries if value is _ABSENT]
    if missing:
        raise UsageError(
            "\n".join(
                f"{where(key)}: missing key `{key}`, {_describe(known[key])}" for key in missing
            )
        )
    for key, expected, value in entries:
        if _is_bad_number(expected, value):
            raise UsageError(_mismatch(where(key), key, expected, value))
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        found = _LOCATED.fullmatch(str(error))
        what, path = (found["what"], found["path"] or "") if found else (str(error), "")
        key = path.removeprefix(".")
        if error.__cause__ is not None:  # a rule between keys, which says itself what is wrong
            raise UsageError(f"{where(key)}: {f'`{key}`: ' if key else ''}{what}") from error
        expected, value = _look_up(root, table, key)
        blame = where(key.partition("[")[0])
        raise UsageError(_mismatch(blame, key, expected, value)) from error


def nearest(word: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _walk(
    table: dict[str, Any], kind: schema.Type, prefix: str
) -> Iterator[tuple[str, schema.Type | None, Any]]:
    """(dotted key, type or None if unknown, value or _ABSENT if it is required and not there)."""
    assert isinstance(kind, schema.StructType)
    names = {field.name for field in kind.fields}
    for name, value in table.items():
        if name not in names:
            yield prefix + name, None, value
    for field in kind.fields:
        key, expected = prefix + field.name, _without_none(field.type)
        value = table.get(field.name, _ABSENT if field.required else None)
        yield key, expected, value
        if isinstance(expected, schema.StructType):
            yield from _walk_section(value, expected, key)


def _walk_section(
    value: Any, kind: schema.StructType, key: str
) -> Iterator[tuple[str, schema.Type | None, Any]]:
    if isinstance(value, dict):
        yield from _walk(value, kind, f"{key}.")
    else:  # its keys are known all the same, so that they can be the nearest to another
        yield from ((k, expected, None) for k, expected, _ in _walk({}, kind, f"{key}."))


def _suggest(key: str, known: dict[str, schema.Type]) -> str:
    """The key that was meant: of that name in any section, or spelt nearly so, here or elsewhere.

    Only last parts are compared: two keys are not alike for being in the same section.
    """
    section, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(known)} | siblings
    near = (
        (name if name in anywhere else None)
        or nearest(name, list(siblings))
        or nearest(name, list(anywhere))
    )
    if near is None:
        return f"; the keys here are {', '.join(f'`{k}`' for k in siblings.values())}"
    return f"; nearest: `{anywhere[near]}`, {_describe(known[anywhere[near]])}"


def _look_up(kind: schema.Type, value: Any, key: str) -> tuple[schema.Type, Any]:
    """Type and value at `node.gpus[0]`."""
    for part in re.findall(r"[^.\[\]]+", key):
        kind = _without_none(kind)
        if isinstance(kind, schema.StructType):
            kind = next(field.type for field in kind.fields if field.name == part)
            value = value[part]
        elif isinstance(kind, schema.VarTupleType):
            kind, value = kind.item_type, value[int(part)]
    return _without_none(kind), value


def _without_none(kind: schema.Type) -> schema.Type:
    """TOML has no null: a key that may be None is one that may be left out."""
    if isinstance(kind, schema.UnionType):
        return next(t for t in kind.types if not isinstance(t, schema.NoneType))
    return kind


def _is_bad_number(expected: schema.Type | None, value: Any) -> bool:
    """What msgspec lets pass: infinity, not-a-number, and money in quotes."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(expected, schema.DecimalType) and isinstance(value, str)


def _mismatch(where: str, key: str, expected: schema.Type | None, value: Any) -> str:
    message = f"{where}: `{key}` must be {_describe(expected)}, not {_show(value)}"
    if isinstance(value, str) and isinstance(
        expected, schema.IntType | schema.FloatType | schema.DecimalType
    ):
        message += ": write it without quotes" if re.fullmatch(r"[-+.\deE_]+", value) else ""
    return message


def _describe(kind: schema.Type | None) -> str:
    match kind:
        case schema.IntType():
            return "a whole number" + _bounds(kind)
        case schema.FloatType():
            return "a number" + _bounds(kind)
        case schema.DecimalType():
            return "an amount of dollars"
        case schema.StrType():
            return "a string"
        case schema.BoolType():
            return "true or false"
        case schema.LiteralType(values=values):
            return "one of " + ", ".join(f'"{value}"' for value in values)
        case schema.VarTupleType(item_type=item):
            return f"a list, each {_describe(item)}"
        case _:
            return "a section"


def _bounds(kind: schema.IntType | schema.FloatType) -> str:
    """Every bound in a recipe is a whole number."""
    limits = (
        ("above", kind.gt),
        ("of at least", kind.ge),
        ("below", kind.lt),
        ("of at most", kind.le),
    )
    words = [f"{word} {int(limit):,}" for word, limit in limits if limit is not None]
    return f" {' and '.join(words)}" if words else ""


def _show(value: Any) -> str:
    match value:
        case str():
            return f'the string "{value}"'
        case bool():
            return "true" if value else "false"
        case dict():
            return "a section"
        case list():
            return "a list"
        case _:
            return str(value)
