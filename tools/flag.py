"""`visaged flag`: say that what was published of a face is wrong, or right; it becomes a sample."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from ..daemon.control import Flag
from ..daemon.outline import find_outline
from ..pipelines.identity.consent import check_consent
from ..pipelines.identity.gallery import Gallery
from ..pipelines.loop.said import Said, label_of, teach
from ..pipelines.loop.sample import Sample
from ..pipelines.loop.sample_store import SampleStore
from ..pipelines.message import EMOTIONS
from .connection import EndpointOption, KeyOption, connect
from .people import requires_consent

PATIENCE_S = 10.0  # a disk may be slow; the answer comes after it


def flag(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CAMERA:TRACK|SAMPLE",
            help="A face seen in the last minutes (`visaged watch` shows them), or a stored sample's id.",
        ),
    ],
    emotion: Annotated[str, typer.Option(help=f"What it really shows: {', '.join(EMOTIONS)}.")] = "",
    person: Annotated[str, typer.Option(help="Who it really is; the gallery learns the face.")] = "",
    not_person: Annotated[str, typer.Option(help="Who it is not, though it was taken for them.")] = "",
    confirm: Annotated[
        bool, typer.Option("--confirm", help="All that was published of it is right.")
    ] = False,
    not_a_face: Annotated[bool, typer.Option("--not-a-face", help="It is no face at all.")] = False,
    seq: Annotated[
        int | None,
        typer.Option(
            min=1, help="`frame_seq` of the result that is meant; else the latest look at the face."
        ),
    ] = None,
    endpoint: EndpointOption = "",
    key: KeyOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="The TOML file.")] = None,
) -> None:
    """Say what is wrong, or right, about a face: a sample is kept of it, encrypted, to learn from.

    Returns when the sample is safely on disk. Saying it again changes nothing; saying something else about
    the same face replaces what was said.

    Examples:
      visaged flag door:3 --emotion happiness
      visaged flag door:3 --person Ada --seq 1234
      visaged flag door:3 --not-person Ada
      visaged flag door:3 --confirm
      visaged flag 3fa0 --not-a-face             (a sample of `visaged samples list`)
    """
    if emotion and emotion not in EMOTIONS:
        raise typer.BadParameter(f"--emotion is one of {', '.join(EMOTIONS)}, not {emotion!r}")
    said = {
        "emotion": emotion,
        "person": person,
        "not_person": not_person,
        "confirm": confirm,
        "is_face": not not_a_face,
    }
    paths = find_outline(config).paths
    console = Console(highlight=False)
    try:
        if ":" not in what:
            needs_consent = bool(person) and requires_consent(config)
            sample = label_sample(what, msgspec.convert(said, Said), paths.state, needs_consent=needs_consent)
            console.print(sentence(sample), markup=False, soft_wrap=True)
            return
        camera, track = camera_and_track(what)
        order = msgspec.convert({**said, "op": "flag", "camera": camera, "track": track, "seq": seq}, Flag)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(
            "say one thing: --emotion and/or one of --person and --not-person; or --confirm; or --not-a-face"
        ) from error
    with connect(paths.runtime, endpoint, key) as daemon:
        answer = daemon.request(order, PATIENCE_S)
    seen = sentence(msgspec.convert(answer["sample"], Sample))
    console.print(f"{seen} (seen {answer['age_s']:.1f} s before)", markup=False, soft_wrap=True)


def label_sample(id: str, said: Said, state: Path, *, needs_consent: bool = False) -> Sample:
    """Store what people say of a stored sample, let the gallery know, and return the sample.

    Raises:
        SampleError: there is no such sample, or nothing to confirm.
        GalleryError: the name cannot be used, nobody has it, or a consent that is needed is missing.
    """
    with SampleStore(state) as store, Gallery(state) as gallery:
        before = store.sample(id)
        if needs_consent:
            check_consent(gallery, said.person, "", gallery.now())
        sample = store.label(before.id, label_of(said, before.shown_emotion, before.identity, gallery))
        teach(gallery, sample, store.face(sample.id).embedding)
    return sample


def camera_and_track(text: str) -> tuple[str, int]:
    """Return camera and track of CAMERA:TRACK."""
    camera, _, number = text.rpartition(":")
    if not camera or not number.isdecimal() or int(number) < 1:
        raise typer.BadParameter(f"a face is CAMERA:TRACK, such as door:3, not {text!r}")
    return camera, int(number)


def sentence(sample: Sample) -> str:
    """Return one line about what a sample shows and what is said of it."""
    return (
        f"sample {sample.id}: {sample.camera}:{sample.track} in frame {sample.seq}, shown as "
        f"{shown(sample)}; {said_of(sample)}"
    )


def shown(sample: Sample) -> str:
    """Return what the daemon published of the face."""
    identity = sample.identity
    name = identity.person + ("?" if identity.state == "uncertain" else "")
    return ", ".join(filter(None, (sample.shown_emotion, name))) or "a face"


def said_of(sample: Sample) -> str:
    """Return what people say of the face."""
    label = sample.label
    if label.is_face is False:
        return "it is no face"
    words = (label.emotion, label.person, *(f"not {name}" for name in label.not_people))
    return ", ".join(filter(None, words)) or "nobody has said what it is"
