"""What people say of a face: one word for the running daemon and for the samples on disk."""

from typing import Annotated

from msgspec import Meta, Struct

from ..errors import GalleryError, SampleError
from ..identity.gallery import F32, Gallery
from ..identity.person import clean_name
from ..message import EMOTIONS, Identity
from ..privacy.audit import note
from .sample import Label, Sample

Name = Annotated[str, Meta(max_length=100)]


class Said(Struct, frozen=True, kw_only=True):
    """What the face shows, who it is or is not; or `confirm`: all that was published of it is right; or
    `is_face` false: it is none.
    """

    emotion: Annotated[str, Meta(pattern=f"^({'|'.join(EMOTIONS)})?$")] = ""
    person: Name = ""
    not_person: Name = ""
    confirm: bool = False
    is_face: bool = True

    def __post_init__(self) -> None:
        """Refuse to say nothing, or things that exclude each other."""
        corrects = bool(self.emotion or self.person or self.not_person)
        if corrects + self.confirm + (not self.is_face) != 1 or (self.person and self.not_person):
            raise ValueError(
                "say what the face shows (emotion), or who it is (person) or is not (not_person); "
                "or `confirm` alone, or `is_face` false alone"
            )


def label_of(said: Said, shown_emotion: str, identity: Identity, gallery: Gallery) -> Label:
    """Return the label for a face that was published so, with names as the gallery spells them.

    Raises:
        SampleError: nothing was published that could be confirmed.
        GalleryError: the name cannot be used, or nobody has it.
    """
    if not said.is_face:
        return Label(is_face=False)
    if said.confirm:
        is_named = identity.state in ("known", "uncertain")
        person = identity.person if is_named else ""
        if not shown_emotion and not person:
            raise SampleError("nothing was published of this face that could be confirmed")
        return Label(emotion=shown_emotion, person=person, is_face=True)
    if said.not_person and not gallery.has(said.not_person):
        raise GalleryError(f"nobody is called {said.not_person}; `visaged people` lists who is")
    return Label(
        emotion=said.emotion,
        person=gallery.name_of(clean_name(said.person)) if said.person else "",
        not_people=(gallery.name_of(said.not_person),) if said.not_person else (),
        is_face=True,
    )


def teach(gallery: Gallery, sample: Sample, embedding: F32 | None, *, who: str = "") -> bool:
    """Let the gallery know what is said of the sample's person, and no more; return whether there is a word.

    The audit log hears of it too: `who` said it, else the user of this process.

    Raises:
        GalleryError: the name cannot be used, or nobody has it any more.
    """
    label = sample.label
    if embedding is None or not (label.person or label.not_people or label.is_face is False):
        return False
    gallery.teach(
        sample.lesson, embedding, space=sample.space, person=label.person, not_people=label.not_people
    )
    for what, name in (("flag person", label.person), *(("flag not person", n) for n in label.not_people)):
        if name:
            note(gallery.folder, what, person=gallery.number_of(name), detail=sample.lesson, who=who)
    return True
