"""The commands about people: enroll, people, forget, merge, unmerge, reject."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table

from ..daemon.control import EnrolTrack
from ..daemon.outline import find_outline
from ..pipelines.errors import GalleryError, VisagedError
from ..pipelines.identity.consent import check_consent, check_note, has_consent
from ..pipelines.identity.gallery import Gallery
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.privacy.audit import note
from ..pipelines.privacy.erasure import Forgotten
from ..pipelines.privacy.erasure import forget as erase
from .connection import EndpointOption, KeyOption, connect

if TYPE_CHECKING:  # loading the networks' libraries takes a second that `visaged people` need not wait
    from ..pipelines.identity.enrolment import Enrolment, PersonReport

StateOption = Annotated[
    Path | None, typer.Option("--state", help="Folder of the gallery, if not the configured one.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The TOML file.")]
LargestOption = Annotated[
    bool, typer.Option("--largest", help="Of several faces in a photo take the largest.")
]


def enroll(
    name: Annotated[str, typer.Argument(help="Who it is.", show_default=False)] = "",
    photos: Annotated[
        list[Path] | None,
        typer.Argument(help="Photos with one face each, or a folder of them.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Many people at once: a folder with a folder of photos per name.")
    ] = None,
    live: Annotated[
        str, typer.Option("--track", help="A face seen now, as CAMERA:TRACK (`visaged watch` shows them).")
    ] = "",
    stranger: Annotated[str, typer.Option(help="A stranger seen before, such as unknown-17.")] = "",
    consent: Annotated[
        str, typer.Option(help='Note about their consent, such as "form 7, expires 2027-11-25".')
    ] = "",
    largest: LargestOption = False,
    endpoint: EndpointOption = "",
    key: KeyOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Give a name to a face: from photos, folders, a live track or a stranger's number.

    The running daemon knows the person within a second. Exit code 1 means that at least one photo could
    not be used; the others are stored.

    Examples:
      visaged enroll "Ada Lovelace" ada-1.jpg ada-2.jpg
      visaged enroll --folder people/            (people/Ada/*.jpg, people/Charles/*.jpg)
      visaged enroll Ada --track door:3
      visaged enroll Ada --track door:3 --endpoint tcp://10.0.0.5:5561 --key laptop.key
      visaged enroll Ada --stranger unknown-17
    """
    ways = [bool(photos), folder is not None, bool(live), bool(stranger)]
    if sum(ways) != 1 or bool(name) == (folder is not None):
        raise typer.BadParameter(
            "give NAME and one of: photos, --track, --stranger; or --folder alone; see --help"
        )
    console = Console(highlight=False)
    if endpoint and not live:
        raise typer.BadParameter(
            "--endpoint goes with --track only: photos are enrolled where the gallery is"
        )
    if live:
        order = order_of(name, live, consent)
        with connect(find_outline(config).paths.runtime, endpoint, key) as daemon:
            answer = daemon.request(order)
        console.print(f"{name}: {answer.get('templates', 1)} templates", markup=False)
    elif stranger:
        with _gallery(config, state) as gallery:
            check_note(consent)
            if requires_consent(config):
                check_consent(gallery, name, consent, gallery.now())
            gallery.name_stranger(stranger, name, consent=consent)
            note(gallery.folder, "enrol", person=gallery.number_of(name), detail="a stranger")
        console.print(f"{stranger} is {name} now; undo with  visaged unmerge {stranger}", markup=False)
    else:
        people = _people_given(name, photos or [], folder)
        with _enrolment(config, state) as enrolment:
            failed = enroll_photos(console, enrolment, people, consent=consent, largest=largest)
        if failed:
            raise typer.Exit(1)


def people(
    strangers: Annotated[bool, typer.Option("--strangers/--no-strangers", help="Also strangers.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for other programs.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """List who is enrolled, and the strangers that were given a number.

    Examples:
      visaged people
      visaged people --no-strangers --json
    """
    with _gallery(config, state) as gallery:
        now, everybody = gallery.now(), [p for p in gallery.people() if strangers or not p.is_stranger]
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(everybody).decode())
        return
    console = Console(highlight=False)
    if not everybody:
        console.print("Nobody is enrolled yet:  visaged enroll NAME PHOTO...")
        return
    table = Table(title="People")
    for heading, side in (
        ("name", "left"),
        ("also", "left"),
        ("templates", "right"),
        ("not them", "right"),
        ("since", "left"),
        ("last seen", "left"),
        ("consent", "left"),
    ):
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for person in everybody:
        table.add_row(
            _plain(person.name),
            _plain(", ".join(person.aliases)),
            str(person.templates),
            str(person.negatives or ""),
            _date(person.created_at),
            _date(person.last_seen) if person.is_stranger else "",
            _plain(person.consent),
        )
    console.print(table)
    for person in everybody:
        if person.consent and not has_consent(person.consent, now):
            console.print(
                f"[yellow]the consent of {_plain(person.name)} has expired; renew or forget[/]",
                soft_wrap=True,
            )


def forget(
    names: Annotated[list[str], typer.Argument(help="Who; also strangers such as unknown-17.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Remove people and everything stored about them, and sign a receipt.

    Templates, negatives, merges, samples and everyone merged into them go, and the bytes are overwritten in
    the files; releases that learned from them are marked and not promoted any more. This cannot be undone.
    Backups are yours to delete. The receipt, in the folder `receipts`, says what was erased and not who:
    only with the code that is printed here, and kept nowhere, can somebody show that it is theirs.

    Examples:
      visaged forget "Ada Lovelace"
      visaged forget unknown-17 --yes
    """
    if not yes:
        typer.confirm(f"Forget {', '.join(names)} for good?", abort=True)
    console = Console(highlight=False)
    folder = state or find_outline(config).paths.state
    with Gallery(folder) as gallery, SampleStore(folder) as samples:
        for name in names:
            _print_forgotten(console, erase(name, gallery, samples, folder))


def merge(
    kept: Annotated[str, typer.Argument(help="The name that stays.")],
    absorbed: Annotated[str, typer.Argument(help="The name that becomes an alias; may be a stranger.")],
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Say that two entries are the same person. `visaged unmerge` undoes it exactly.

    Examples:
      visaged merge Ada "Ada Byron"
      visaged merge Ada unknown-17
    """
    with _gallery(config, state) as gallery:
        numbers = gallery.number_of(kept), gallery.number_of(absorbed)
        gallery.merge(kept, absorbed)
        note(gallery.folder, "merge", person=numbers[0], detail=f"absorbed number {numbers[1]}")
    Console(highlight=False).print(
        f"{absorbed} counts as {kept} now; undo with  visaged unmerge {absorbed!r}", markup=False
    )


def unmerge(
    name: Annotated[str, typer.Argument(help="The alias to make an entry of its own again.")],
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Undo a merge: the alias is a person (or stranger) of its own again, with its own templates.

    Example:
      visaged unmerge "Ada Byron"
    """
    with _gallery(config, state) as gallery:
        kept, own = gallery.unmerge(name)
        detail = f"was in number {gallery.number_of(kept)}"
        note(gallery.folder, "unmerge", person=gallery.number_of(own), detail=detail)
    Console(highlight=False).print(f"{own} is no longer part of {kept}", markup=False)


def reject(
    name: Annotated[str, typer.Argument(help="Who it is not.")],
    photos: Annotated[list[Path], typer.Argument(help="Photos of somebody mistaken for them.")],
    largest: LargestOption = False,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Say that a face is not this person: faces nearer to it than to their templates lose the name.

    Example:
      visaged reject Ada not-ada.jpg
    """
    console = Console(highlight=False)
    with _enrolment(config, state) as enrolment:
        for photo in photos:
            enrolment.reject(name, photo, largest=largest)
            console.print(f"{photo} is not {name}", markup=False, soft_wrap=True)


def order_of(name: str, live: str, consent: str = "") -> EnrolTrack:
    """Return the order to enrol the face `live`, given as CAMERA:TRACK.

    Raises:
        BadParameter: it is no CAMERA:TRACK.
    """
    camera, _, number = live.rpartition(":")
    if not camera or not number.isdecimal() or int(number) < 1:
        raise typer.BadParameter(f"--track wants CAMERA:TRACK, such as door:3, not {live!r}")
    return EnrolTrack(camera=camera, track=int(number), name=name, consent=consent)


def enroll_photos(
    console: Console,
    enrolment: "Enrolment",
    people: dict[str, list[Path]],
    *,
    consent: str = "",
    largest: bool = False,
) -> int:
    """Enrol everybody in `people` (name -> photos), print what became of each photo; return the failures."""
    failed, stored = 0, 0
    for name in progress(
        people, description="Enrolling", console=console, transient=True, disable=len(people) < 2
    ):
        try:
            report = enrolment.enrol(name, people[name], consent=consent, largest=largest)
        except GalleryError as error:
            failed += 1
            console.print(f"[red]failed[/]  {_plain(name)}: {_plain(str(error))}", soft_wrap=True)
            continue
        _print_report(console, report)
        failed += report.failed
        stored += report.templates > 0
    console.print(f"{stored} of {len(people)} people enrolled, {failed} failures", soft_wrap=True)
    return failed


def _print_forgotten(console: Console, forgotten: Forgotten) -> None:
    receipt, (name, *aliases) = forgotten.receipt, forgotten.names
    also = f" (also {', '.join(aliases)})" if aliases else ""
    lines = [
        f"forgot {name}{also}: removed {receipt.templates} templates, {receipt.negatives} negatives, "
        f"{receipt.merges} merges, {receipt.samples} samples",
        f"receipt {forgotten.path}; for the person: {name}, code {forgotten.code} (kept nowhere)",
    ]
    for release in receipt.releases:
        lines.append(f"release {release} learned from them: see  visaged release show {release}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if not receipt.is_scrubbed:
        console.print(
            "another process was reading: the old bytes go from the log when it next pauses; "
            "restart the daemon to be sure",
            style="yellow",
        )


def _print_report(console: Console, report: "PersonReport") -> None:
    for photo in report.photos:
        if photo.face is None:
            console.print(f"[red]failed[/]  {_plain(photo.problem)}", soft_wrap=True)
        elif photo.warning:
            console.print(
                f"[yellow]warned[/]  {_plain(str(photo.path))} {_plain(photo.warning)}", soft_wrap=True
            )
    if report.templates:
        console.print(
            f"[green]stored[/]  {_plain(report.name)}: {report.templates} templates", soft_wrap=True
        )


def _people_given(name: str, photos: list[Path], folder: Path | None) -> dict[str, list[Path]]:
    from ..pipelines.identity.enrolment import people_in, photos_in

    if folder is not None:
        return people_in(folder)
    found: list[Path] = []
    for path in photos:
        found += photos_in(path) if path.is_dir() else [path]
    if not found:
        raise VisagedError(f"{photos[0]} holds no photos; give JPEG or PNG files")
    return {name: found}


@contextmanager
def _enrolment(config: Path | None, state: Path | None) -> "Iterator[Enrolment]":
    """Open gallery and networks."""
    from ..daemon.config import find_config
    from ..pipelines.assembly import assemble
    from ..pipelines.identity.enrolment import Enrolment

    settings = find_config(config)
    paths = settings.paths
    with assemble(
        settings.stages, state=state or paths.state, cache=paths.cache, wheels=paths.wheels
    ) as stages:
        space = stages.ensemble.embedding_space
        yield Enrolment(stages.gallery, stages.photo_reader(), space, settings.identity)


@contextmanager
def _gallery(config: Path | None, state: Path | None) -> Iterator[Gallery]:
    with Gallery(state or find_outline(config).paths.state) as gallery:
        yield gallery


def requires_consent(config: Path | None) -> bool:
    """Return whether the configuration asks for a consent with every name."""
    from ..daemon.config import find_config

    return find_config(config).identity.require_consent


def _plain(text: str) -> str:
    """Return `text` so that rich prints it as it is."""
    from rich.markup import escape

    return escape(text)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
