"""`visaged keys`: which clients on other machines may connect, and what they may do."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..daemon import keys
from ..daemon.keys import Role
from ..daemon.outline import find_outline
from ..pipelines.privacy.audit import note

app = typer.Typer(
    no_args_is_help=True, help="Say which clients on other machines may connect, and what they may do."
)
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The TOML file; only its folder of keys counts.")
]
NameArgument = Annotated[str, typer.Argument(help="A name for the client, such as its machine's.")]


@app.command("init")
def init(config: ConfigOption = None) -> None:
    """Make the server's key pair, once.

    The secret stays on this machine, in a file of mode 0600; run this as the user who runs the daemon.
    Under systemd it can be a credential instead, see docs/security.md.

    Example:
      visaged keys init
    """
    folder = _folder(config)
    pair = keys.create_server(folder)
    _say(f"made {keys.server_file(folder)}; its public key is {pair.public}")
    _say("next: set [remote] results or control, and `visaged keys add NAME --role subscribe`")


@app.command("add")
def add(
    name: NameArgument,
    role: Annotated[
        list[Role],
        typer.Option(
            help="subscribe: receive results, ask for the status. flag: say that an answer was wrong. "
            "enrol: name faces. admin: everything. May be given several times."
        ),
    ],
    to: Annotated[Path | None, typer.Option(help="Where to write the client's file; else NAME.key.")] = None,
    config: ConfigOption = None,
) -> None:
    """Let a client in: write the file, mode 0600, that goes to its machine.

    The client's secret key is in that file and nowhere else; hand it over on a safe way and keep no copy.
    The running daemon knows the client at once.

    Examples:
      visaged keys add laptop --role subscribe
      visaged keys add desk --role subscribe --role enrol --to /media/stick/desk.key
    """
    file = to or Path(f"{name}.key")
    client = keys.add_client(_folder(config), name, role, file)
    roles = ", ".join(role.value for role in client.roles)
    note(find_outline(config).paths.state, "client key added", detail=f"{client.name}: {roles}")
    _say(f"{client.name} may: {roles}. Move {file} to its machine, and keep no copy here.")


@app.command("list")
def list_keys(config: ConfigOption = None) -> None:
    """Show the server's public key and every client, revoked ones too.

    Example:
      visaged keys list
    """
    folder = _folder(config)
    clients, problems = keys.read_clients(folder)
    _say(f"server  {keys.read_server(folder).public}  ({keys.server_file(folder)})")
    table = Table("client", "may", "since", "revoked", box=None)
    table.add_column("public key", overflow="fold")
    for client in clients:
        roles = ", ".join(role.value for role in client.roles)
        table.add_row(client.name, roles, client.added_at, client.revoked_at, client.public)
    Console(highlight=False, markup=False).print(table if clients else "no clients yet")
    for problem in problems:
        typer.echo(f"cannot be used and lets nobody in: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


@app.command("revoke")
def revoke(name: NameArgument, config: ConfigOption = None) -> None:
    """Take all rights from a client, at once and without a restart.

    Its requests are refused from the next on. If it subscribed, all subscribers on other machines are
    disconnected for a moment; those that still may come back by themselves and see a gap in `seq`.

    Example:
      visaged keys revoke laptop
    """
    client = keys.revoke_client(_folder(config), name)
    note(find_outline(config).paths.state, "client key revoked", detail=client.name)
    _say(f"{client.name} may do nothing any more, within a second")


@app.command("rotate")
def rotate(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, config: ConfigOption = None
) -> None:
    """Replace the server's key pair, as when the old one may have been read by others.

    Every client is disconnected until its file holds the new public key (the line `server`).

    Example:
      visaged keys rotate
    """
    folder = _folder(config)
    if not yes:
        typer.confirm("Disconnect every client until it is given the new key?", abort=True)
    pair = keys.rotate_server(folder)
    note(find_outline(config).paths.state, "server key rotated")
    _say(f'tell every client:  server = "{pair.public}"')


def _folder(config: Path | None) -> Path:
    return find_outline(config).keys


def _say(sentence: str) -> None:
    Console(highlight=False, markup=False, soft_wrap=True).print(sentence)
