"""`visaged schema`: the JSON Schema of what the daemon publishes."""

import msgspec
import typer

from ..pipelines.message import json_schema


def schema() -> None:
    """Print the JSON Schema of the result header.

    The header is MessagePack with exactly these fields; the embeddings follow as a raw buffer of `(n, D)`
    little-endian float32.

    Example:
      visaged schema > visaged.schema.json
    """
    typer.echo(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode())
