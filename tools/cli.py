"""The command `visaged`: one table of commands, each imported only when it is asked for."""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from ..daemon import logs
from ..pipelines.errors import VisagedError

EXTRAS = dict.fromkeys(("torch", "captum", "kornia", "matplotlib"), "learn")
EXIT_INTERRUPTED = 130

SERVE, PEOPLE, LEARN = "Serve", "People", "Learn from mistakes"
MEASURE, SET_UP = "Try and measure", "Set up"


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table: `module`.`attribute` is a function with typer options, or a typer app."""

    name: str
    panel: str
    module: str
    attribute: str
    help: str


COMMANDS = (
    Command("run", SERVE, "run", "run", "Run the daemon: cameras in, faces out."),
    Command("watch", SERVE, "watch", "watch", "Show live what the daemon publishes."),
    Command("status", SERVE, "status", "status", "Ask the running daemon how it is."),
    Command(
        "enroll", PEOPLE, "people", "enroll", "Give a name to a face: from photos, folders or a live track."
    ),
    Command("people", PEOPLE, "people", "people", "List who is enrolled."),
    Command("forget", PEOPLE, "people", "forget", "Remove a person and everything stored about them."),
    Command("receipt", PEOPLE, "receipt", "app", "List and verify the receipts of what was forgotten."),
    Command("audit", PEOPLE, "audit", "audit", "Show who did what to people, releases and keys."),
    Command("merge", PEOPLE, "people", "merge", "Say that two entries are the same person."),
    Command("unmerge", PEOPLE, "people", "unmerge", "Undo a merge."),
    Command("reject", PEOPLE, "people", "reject", "Say that a face is not this person."),
    Command("flag", LEARN, "flag", "flag", "Say that what was published of a face is wrong, or right."),
    Command("samples", LEARN, "samples", "app", "List, show and remove the faces kept to learn from."),
    Command("learn", LEARN, "learn", "app", "Learn from labelled samples; watch it; prepare it."),
    Command("demo", MEASURE, "demo", "demo", "Show everything on real video, without a camera."),
    Command("replay", MEASURE, "replay", "replay", "Run a video through the pipeline, losing no frame."),
    Command("bench", MEASURE, "bench", "bench", "Measure speed and memory on this machine."),
    Command(
        "soak", MEASURE, "soak", "soak", "Run the daemon for long: does it grow, slow down, lose frames?"
    ),
    Command("check-config", SET_UP, "check_config", "check_config", "Check the configuration file."),
    Command("doctor", SET_UP, "doctor", "doctor", "Look at all that the daemon needs, and say what to mend."),
    Command(
        "clock", SET_UP, "clock", "clock", "Show by what time things grow old; say that the clock is right."
    ),
    Command("keys", SET_UP, "keys", "app", "Say which clients on other machines may connect."),
    Command("rekey", SET_UP, "rekey", "rekey", "Seal what is stored of people with a new key."),
    Command("models", SET_UP, "models", "app", "Import and list the networks."),
    Command("build", SET_UP, "build", "build", "Build the networks into plans, faster ones or for a GPU."),
    Command("plans", SET_UP, "plans", "app", "List, inspect, verify and prune plans."),
    Command("calibrate", SET_UP, "calibrate", "calibrate", "Measure INT8 ranges on photos."),
    Command("explain", MEASURE, "explain", "explain", "Draw where the emotion network looks on a face."),
    Command(
        "synthesise",
        MEASURE,
        "synthesise",
        "synthesise",
        "Show a face turned, lit, aged, with other expressions.",
    ),
    Command(
        "evaluate-synthesis",
        SET_UP,
        "evaluate_synthesis",
        "evaluate_synthesis",
        "Measure on photos how well synthetic faces keep the person.",
    ),
    Command("data", SET_UP, "data", "app", "Say what the data of a task are worth."),
    Command("train", SET_UP, "train", "train", "Train a network as a recipe says."),
    Command(
        "train-detector", SET_UP, "train_detector", "train_detector", "Train a face detector of your own."
    ),
    Command(
        "train-generator", SET_UP, "train_generator", "train_generator", "Train a network that draws faces."
    ),
    Command("train-emotion", SET_UP, "train_emotion", "train_emotion", "Train the small emotion head."),
    Command("release", SET_UP, "release", "app", "Make releases, try them, promote and roll back."),
    Command("evaluate", SET_UP, "evaluate", "evaluate", "Measure a release on faces with labels."),
    Command(
        "evaluate-identity",
        SET_UP,
        "evaluate_identity",
        "evaluate_identity",
        "Measure on LFW how well people are told apart.",
    ),
    Command("install", SET_UP, "install", "install", "Install visaged as a systemd service."),
    Command("uninstall", SET_UP, "install", "uninstall", "Remove the systemd service."),
    Command("schema", SET_UP, "schema", "schema", "Print the JSON Schema of the results."),
    Command("version", SET_UP, "version", "version", "Print the version."),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with the command's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    wants_debug = "--debug" in words[:1]
    logs.configure("visaged", logs.LoggingConfig(level="debug" if wants_debug else "warning"))
    try:
        build_app(wanted(words))(words, prog_name="visaged")
    except VisagedError as error:
        explain(error, wants_debug)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        missing = VisagedError(
            f"this command needs {error.name}, which is not installed; run  pip install 'visaged[{extra}]'"
        )
        explain(missing, wants_debug)
        sys.exit(missing.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def wanted(words: Sequence[str]) -> str:
    """Return the command that `words` ask for; empty when there is none."""
    return next((word for word in words if not word.startswith("-")), "")


def build_app(name: str) -> typer.Typer:
    """Return the command line in which only command `name` is real; the others are there for the help."""
    app = typer.Typer(
        name="visaged",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in COMMANDS:
        target = load(command) if command.name == name else _placeholder
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=command.name, rich_help_panel=command.panel)
        elif target is _placeholder:
            app.command(command.name, help=command.help, rich_help_panel=command.panel)(target)
        else:
            app.command(command.name, rich_help_panel=command.panel)(target)
    return app


def load(command: Command) -> Callable[..., Any] | typer.Typer:
    """Return the function or app behind `command`."""
    module = importlib.import_module(f"{__package__}.{command.module}")
    target: Callable[..., Any] | typer.Typer = getattr(module, command.attribute)
    return target


def explain(error: VisagedError, wants_debug: bool) -> None:
    """Print the one sentence, and with --debug where it came from."""
    if wants_debug:
        logging.getLogger(__name__).debug("where it came from", exc_info=error)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {error}", style="bold red", markup=False)


def _placeholder() -> None:
    raise AssertionError("a placeholder is never run")


def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug messages; goes before the command.")
    ] = False,
) -> None:
    """Faces from cameras: who, where, and how they feel, published over ZeroMQ.

    First steps: `visaged demo` shows it without a camera; `visaged run` serves the cameras of
    visaged.toml; `visaged watch` shows what is published; `visaged enroll NAME PHOTO...` gives a face a name.
    """


if __name__ == "__main__":
    main()
