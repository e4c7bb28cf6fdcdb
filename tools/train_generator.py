"""`visaged train-generator`: photos of classes in; a network that draws a face as each of them out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import track

from ..daemon.config import find_config
from ..kernels.chips import cut_chip
from ..pipelines.cache_files import write_atomically
from ..pipelines.detector import Detector, build_photo_detector
from ..pipelines.errors import PhotoError, SourceError
from ..pipelines.learning.contact_sheet import contact_sheet, write_png
from ..pipelines.learning.samples import TRAIN, Samples, split_of
from ..pipelines.learning.task import TaskConfig, photos_of
from ..pipelines.model_store import ModelStore
from ..pipelines.photo import read_photo
from ..pipelines.synthesis.generator import PADDING, Generator
from .train import watching

if TYPE_CHECKING:
    from ..pipelines.synthesis.vae_gan import GeneratorEpoch

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SHOWN = 8  # faces on the sheet


def train_generator(
    folder: Annotated[Path, typer.Argument(help="FOLDER/CLASS/photo.jpg or FOLDER/CLASS/PERSON/photo.jpg")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, network and a sheet of what it draws.")],
    epochs: Annotated[int, typer.Option(min=1, max=10_000, help="Passes over the photos.")] = 60,
    width: Annotated[int, typer.Option(min=4, max=128, help="Filters of the largest maps.")] = 32,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Cores.")] = 2,
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Train a conditional VAE-GAN that draws a face of 64 px again as each class.

    A fifth of the people is kept out and drawn again after each epoch: where their L1 stops falling, the
    network learns the others by heart. An interrupted run goes on. The folder then holds generator.onnx, for
    `visaged synthesise --generator`, and sheet.png.

    Example:
      visaged train-generator faces/ --out generator --epochs 200
    """
    from ..pipelines.synthesis.vae_gan import GeneratorRun, export_generator
    from ..pipelines.synthesis.vae_gan_networks import GeneratorConfig

    paths, console = find_config(config).paths, Console(highlight=False)
    wanted = GeneratorConfig(epochs=epochs, width=width, threads=threads)
    detector = build_photo_detector(ModelStore(paths.cache, paths.wheels))
    samples = faces_of(folder, wanted.size, detector, console)
    is_learned = split_of(samples.groups, tune=0.2, test=0) == TRAIN
    train, tune = samples.take(is_learned), samples.take(~is_learned)
    if len(train) < 2:
        raise SourceError(f"{folder} has {len(samples)} faces, too few to learn from; add photos")
    console.print(f"{len(train)} faces to learn from, {len(tune)} of other people to look at")
    run = GeneratorRun(wanted, samples.classes, out)

    def tell(epoch: "GeneratorEpoch") -> None:
        console.print(
            f"  epoch {epoch.number}: L1 {epoch.train_l1:.3f}, of others {epoch.tune_l1:.3f}, "
            f"discriminator {epoch.discriminator:.2f}"
        )

    with watching(console) as watch:
        run.train(train, tune, tell, watch)
    write_atomically(out / "generator.onnx", export_generator(run.network, wanted.size, samples.classes))
    drawn = sheet(tune if len(tune) else train, Generator.load(out / "generator.onnx"))
    write_png(drawn, out / "sheet.png")
    console.print(f"{out / 'generator.onnx'}; {out / 'sheet.png'} shows what it draws", soft_wrap=True)


def faces_of(folder: Path, size: int, detector: Detector, console: Console) -> Samples:
    """Return the largest face of every photo as a chip, the names of the folders as classes.

    Raises:
        SourceError: no folder, fewer than two classes, or no face.
    """
    names = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if len(names) < 2:
        raise SourceError(
            f"{folder} has {len(names)} folders of classes; make FOLDER/CLASS/photo.jpg for two or more"
        )
    task = TaskConfig(name="generator", classes=tuple(names), folders={"train": folder})
    chips: list[U8] = []
    labels: list[int] = []
    groups: list[str] = []
    for photo in track(list(photos_of(task)), description="finding faces", console=console, transient=True):
        try:
            rgb = read_photo(photo.path)
        except PhotoError:
            continue
        faces = detector.detect(rgb)
        if not faces:
            continue
        face = max(faces, key=lambda found: float(np.prod(found.box[2:] - found.box[:2])))
        chips.append(cut_chip(rgb, face.landmarks, size, PADDING))
        labels.append(names.index(photo.label))
        groups.append(photo.group)
    if not chips:
        raise SourceError(f"no face was found in the photos of {folder}; name another folder")
    targets = np.eye(len(names), dtype=np.float32)[labels]
    return Samples(np.stack(chips), targets, np.array(groups), tuple(names))


def sheet(samples: Samples, generator: Generator) -> U8:
    """Return some faces and what the generator draws of them, a column for each class."""
    pictures = samples.pictures[:SHOWN]
    inputs: F32 = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    columns = [pictures]
    for label in generator.classes:
        drawn = generator.run(inputs, label).transpose(0, 2, 3, 1)
        columns.append(np.clip(drawn, 0, 255).round().astype(np.uint8))
    return contact_sheet(columns, ["photo", *generator.classes])
