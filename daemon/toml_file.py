"""Reads the one TOML file into frozen structs; what is wrong becomes one sentence with file and key."""

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from ..pipelines.errors import ConfigError

T = TypeVar("T")
VARIABLE = "VISAGED_CONFIG"
SEARCHED = (Path("visaged.toml"), Path("/etc/visaged/visaged.toml"))

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<at>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`")
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


def find_file(given: Path | None = None) -> Path | None:
    """Return the configuration file: `given`, else VISAGED_CONFIG, else the first searched that exists.

    Raises:
        ConfigError: a file that was named does not exist.
    """
    named, who = given, "--config"
    if named is None and os.environ.get(VARIABLE):
        named, who = Path(os.environ[VARIABLE]), VARIABLE
    if named is None:
        return next((path.absolute() for path in SEARCHED if path.is_file()), None)
    if not named.is_file():
        raise ConfigError(f"the configuration file {named} given by {who} does not exist; check the path")
    return named.absolute()


def read_file(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: unreadable, not UTF-8, or a syntax error (with its line).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path} ({error})") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and nesting without an end
        raise ConfigError(
            f"{path} is not valid TOML: {error}; a value needs the form  key = value"
        ) from error


def decode(document: object, kind: type[T], where: str, root: str = "") -> T:
    """Return `document` as `kind`; `where` names the file and `root` the table in error sentences.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.
    """
    try:
        return msgspec.convert(document, kind, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), document, kind, root)}") from error


def _decode_path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str) and value:
        try:
            return Path(value).expanduser().absolute()
        except RuntimeError as error:  # as ~nobody/x
            raise ValueError(str(error)) from error
    raise ValueError("Expected a path in quotes")


def _explain(text: str, document: object, kind: type[Any], root: str) -> str:
    match = _WHERE.match(text)
    what, at = (match["what"], match["at"] or "$") if match else (text, "$")
    steps = [m["key"] if m["key"] is not None else m["index"] for m in _STEP.finditer(at)]
    key_path = _spell(steps, root)
    unknown = _UNKNOWN.match(what)
    if unknown:
        allowed = _keys_at(inspect.type_info(kind), steps)
        table = key_path or "the top level"
        return f"unknown key {unknown['key']!r} in {table}; {_suggest(unknown['key'], allowed)}"
    if what.startswith("Invalid enum value"):
        what = f"that is none of {', '.join(_choices_at(inspect.type_info(kind), steps))}"
    value = _value_at(document, steps)
    got = "" if isinstance(value, dict | list) or value is None else f" (it is {value!r})"
    return f"{key_path or 'the top level'}{got}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _spell(steps: list[str], root: str) -> str:
    spelt = root
    for step in steps:
        if step.isdigit():
            spelt += f" number {int(step) + 1}"
        elif step != "...":
            spelt += f".{step}" if spelt else step
    return spelt


def _suggest(key: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _keys_at(kind: inspect.Type, steps: list[str]) -> list[str]:
    kind = _type_at(kind, steps)
    return [f.encode_name for f in kind.fields] if isinstance(kind, inspect.StructType) else []


def _choices_at(kind: inspect.Type, steps: list[str]) -> list[str]:
    kind = _type_at(kind, steps)
    if isinstance(kind, inspect.EnumType):
        return [str(member.value) for member in kind.cls]
    return [str(value) for value in kind.values] if isinstance(kind, inspect.LiteralType) else []


def _type_at(kind: inspect.Type, steps: list[str]) -> inspect.Type:
    for step in steps:
        kind = _unwrap(kind)
        if isinstance(kind, inspect.StructType):
            kind = next((f.type for f in kind.fields if f.encode_name == step), kind)
        elif isinstance(kind, inspect.DictType):
            kind = kind.value_type
        elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
            kind = kind.item_type
    return _unwrap(kind)


def _unwrap(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        structs = [t for t in kind.types if isinstance(t, inspect.StructType)]
        return structs[0] if structs else kind
    return kind


def _value_at(document: Any, steps: list[str]) -> Any:
    for step in steps:
        try:
            document = document[int(step) if step.isdigit() else step]
        except (KeyError, IndexError, TypeError):
            return None
    return document
