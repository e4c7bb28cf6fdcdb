"""`visaged check-config`: is the file right, and what does it say. Also writes docs/configuration.md."""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import inspect as types

from ..daemon import toml_file
from ..daemon.config import Config, load_config
from ..pipelines.errors import ConfigError

HEAD = """\
# Configuration

One TOML file, read once when a process starts: the one named by `--config`, else by the environment
variable `VISAGED_CONFIG`, else `./visaged.toml`, else `/etc/visaged/visaged.toml`. To change something, edit
it, ask `visaged check-config`, and restart. Only cameras have to be in it:

```toml
[[camera]]
name = "door"
source = "/dev/video0"
```

Unknown keys and values out of range are errors that name the file, the key and what is allowed (exit code
78). Relative paths start at the working directory, `~` is the home folder.
This page is written by `visaged check-config --markdown`; a test compares.
"""


def check_config(
    file: Annotated[
        Path | None, typer.Argument(help="The TOML file; else the one `visaged run` would take.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all keys instead.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print every value in force, defaults included, as JSON.")
    ] = False,
) -> None:
    """Check the configuration without starting anything.

    Exit code 0: it is right. 78: it is not, and the message says where.

    Examples:
      visaged check-config
      visaged check-config /etc/visaged/visaged.toml --show
    """
    if markdown:
        sys.stdout.write(reference())
        return
    path = toml_file.find_file(file)
    if path is None:
        raise ConfigError("no configuration file found; name one: visaged check-config FILE")
    config = load_config(path)
    if show:
        typer.echo(msgspec.json.format(msgspec.json.encode(config, enc_hook=str), indent=2).decode())
        return
    cameras = ", ".join(camera.name for camera in config.camera) or "no camera yet"
    typer.echo(f"{path} is right: {cameras}")


def reference() -> str:
    """Return docs/configuration.md: every table and key with type, range, default and meaning."""
    info = types.type_info(Config)
    assert isinstance(info, types.StructType)
    plain = [f for f in info.fields if struct_of(f.type) is None]
    tables = [f for f in info.fields if struct_of(f.type) is not None]
    parts = [HEAD, "\n## Top level\n\n", key_table(Config, plain)]
    for field in tables:
        kind = struct_of(field.type)
        assert kind is not None
        brackets = f"[[{field.name}]]" if isinstance(field.type, types.VarTupleType) else f"[{field.name}]"
        inner = types.type_info(kind)
        assert isinstance(inner, types.StructType)
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
        parts += [f"\n## `{brackets}`\n\n{summary}\n\n", key_table(kind, list(inner.fields))]
    return "".join(parts)


def key_table(kind: type[Any], fields: list[types.Field]) -> str:
    """Return the Markdown table of `fields` of `kind`."""
    docs = field_docs(kind)
    rows = ["| key | type | default | meaning |\n|---|---|---|---|\n"]
    for field in fields:
        meaning = " ".join(docs.get(field.name, "").split())
        cells = (f"`{field.name}`", type_words(field.type), default_words(field), meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(rows)


def field_docs(kind: type[Any]) -> dict[str, str]:
    """Return the string literal below every field of `kind` and of what it inherits."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if owner in (object, msgspec.Struct) or owner.__module__.startswith("msgspec"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        docs.update(_docs_below(body))
    return docs


def _docs_below(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, doc in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(doc, ast.Expr)
            and isinstance(doc.value, ast.Constant)
            and isinstance(doc.value.value, str)
        ):
            yield field.target.id, doc.value.value


def struct_of(kind: types.Type) -> type[Any] | None:
    """Return the struct behind a table or a list of tables; None for a plain value."""
    if isinstance(kind, types.Metadata):
        return struct_of(kind.type)
    if isinstance(kind, types.VarTupleType):
        return struct_of(kind.item_type)
    return kind.cls if isinstance(kind, types.StructType) else None


def type_words(kind: types.Type) -> str:
    """Return the type and its bounds in an operator's words."""
    match kind:
        case types.Metadata():
            return type_words(kind.type)
        case types.BoolType():
            return "true or false"
        case types.IntType():
            return f"integer{_bounds(kind)}"
        case types.FloatType():
            return f"number{_bounds(kind)}"
        case types.StrType():
            return f"text matching `{kind.pattern}`" if kind.pattern else "text"
        case types.LiteralType():
            return " or ".join(f"`{json.dumps(value)}`" for value in kind.values)
        case types.EnumType():
            return " or ".join(f'`"{member.value}"`' for member in kind.cls)
        case types.VarTupleType() | types.ListType():
            return f"list of {type_words(kind.item_type)}"
        case types.TupleType():
            return f"list of {len(kind.item_types)}: " + ", ".join(type_words(t) for t in kind.item_types)
        case types.DictType():
            return f"table of {type_words(kind.value_type)}"
        case types.CustomType():
            return "path"
        case types.UnionType():
            return " or ".join(type_words(t) for t in kind.types if not isinstance(t, types.NoneType))
    return type(kind).__name__


def _bounds(kind: types.IntType | types.FloatType) -> str:
    signs = (("≥", kind.ge), (">", kind.gt), ("≤", kind.le), ("<", kind.lt))
    words = [f"{sign} {bound:g}" for sign, bound in signs if bound is not None]
    return f", {', '.join(words)}" if words else ""


def default_words(field: types.Field) -> str:
    """Return the default as it would be written in TOML."""
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT and field.default_factory not in (list, dict, tuple):
        return "see text"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "none"
    if isinstance(default, tuple | list):
        return f"`{msgspec.json.encode(default, enc_hook=str).decode()}`".replace(",", ", ")
    return f"`{msgspec.json.encode(default, enc_hook=str).decode()}`"
