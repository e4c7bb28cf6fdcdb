"""`visaged receipt`: what was erased, when, by which key; and whether a receipt is genuine."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..daemon.outline import find_outline
from ..pipelines.errors import StoreError
from ..pipelines.privacy.erasure import Receipt, name_hash, read_receipt
from ..pipelines.privacy.seal import open_signer

app = typer.Typer(no_args_is_help=True, help="List and verify the receipts of `visaged forget`.")
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file.")]
StateOption = Annotated[Path | None, typer.Option("--state", help="State folder, if not the configured one.")]


@app.command("list")
def list_receipts(config: ConfigOption = None, state: StateOption = None) -> None:
    """List the receipts that are kept, the oldest first. None says who was erased.

    Example:
      visaged receipt list
    """
    folder = state or find_outline(config).paths.state
    found = [read_receipt(path) for path in (folder / "receipts").glob("*.json")]
    table = Table("receipt", "when", "templates", "samples", "releases marked", "genuine", box=None)
    for receipt in sorted(found, key=lambda one: one.at):
        genuine = "yes" if receipt.is_genuine else "NO"
        counts = str(receipt.templates), str(receipt.samples)
        table.add_row(receipt.id, _when(receipt.at), *counts, ", ".join(receipt.releases), genuine)
    Console(highlight=False, markup=False).print(table if found else "nobody was erased yet")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The receipt.")],
    name: Annotated[str, typer.Option(help="Whom it is said to be about; needs --code.")] = "",
    code: Annotated[str, typer.Option(help="The code that was told with the receipt.")] = "",
    key: Annotated[
        str, typer.Option(help="Public key that must have signed it; else one of this machine's.")
    ] = "",
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Check that a receipt is as it was signed, by whom, and with --name and --code about whom it is.

    Exit code 1 when anything is not so. On another machine give the public key of the one that signed.

    Examples:
      visaged receipt verify 3fa0c1d2e4b5.json
      visaged receipt verify 3fa0c1d2e4b5.json --name "Ada Lovelace" --code 9f...
    """
    if bool(name) != bool(code):
        raise typer.BadParameter("--name and --code go together")
    receipt = read_receipt(file)
    if not receipt.is_genuine:
        raise StoreError(f"{file} was changed after it was signed, or never signed")
    keys = [key] if key else open_signer(state or find_outline(config).paths.state).publics
    if receipt.key not in keys:
        raise StoreError(f"{file} is whole, but signed with another key: {receipt.key}")
    if name and name_hash(name, code) != receipt.person:
        raise StoreError(f"{file} is genuine, but not about {name} with this code")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"genuine: {sentence(receipt)}" + (f"; it is about {name}" if name else ""))


def sentence(receipt: Receipt) -> str:
    """Return what a receipt says."""
    marked = f"; releases that learned from them: {', '.join(receipt.releases)}" if receipt.releases else ""
    return (
        f"receipt {receipt.id} of {_when(receipt.at)}: {receipt.templates} templates, "
        f"{receipt.negatives} negatives, {receipt.merges} merges, {receipt.samples} samples, "
        f"{receipt.checkpoints} unfinished rounds of learning erased{marked}; signed by {receipt.key}"
    )


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
