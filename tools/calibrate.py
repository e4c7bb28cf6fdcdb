"""`visaged calibrate`: the INT8 ranges of a network, measured on the faces in a folder of photos.

Only numbers are kept: the smallest and largest value of each tensor over all faces.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import track as progress

from ..daemon.config import find_config
from ..pipelines.cache_files import write_atomically
from ..pipelines.engines.precision import measure_ranges
from ..pipelines.errors import ModelError, SourceError
from ..pipelines.model_store import ModelStore
from ..pipelines.registry import NETWORKS
from .lfw import people_of_pairs, read_pairs
from .photo_faces import faces_of, photos_under


def calibrate(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, searched to any depth.")],
    network: Annotated[str, typer.Option(help="The network.")] = "face-resnet",
    most: Annotated[int, typer.Option(min=1, help="Faces to measure on.")] = 300,
    without: Annotated[
        Path | None,
        typer.Option(help="An LFW file of pairs: its people (by folder) are left out, to be tested on."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write NETWORK.ranges.json into.")] = Path(),
    config: Annotated[Path | None, typer.Option(help="The TOML file; only its folders count.")] = None,
) -> None:
    """Measure the INT8 ranges of a network on real faces.

    The default network's are shipped with visaged; this makes others, as for a camera in infrared. Use them
    with `visaged build --precision int8 --ranges FILE`.

    Examples:
      visaged calibrate ~/photos
      visaged calibrate lfw/images --without lfw/pairs_folds1-5.txt --out pipelines/weights
    """
    if network not in NETWORKS:
        raise ModelError(f"no network for faces is called {network!r}; known are {', '.join(NETWORKS)}")
    paths = find_config(config).paths
    models, console = ModelStore(paths.cache, paths.wheels), Console(stderr=True)
    excluded = people_of_pairs(read_pairs(without)) if without else set()
    candidates = [path for path in photos_under(photos) if path.parent.name not in excluded]
    order = np.random.default_rng(0).permutation(len(candidates))[:most]
    chosen = [candidates[index] for index in sorted(order.tolist())]
    recipe = NETWORKS[network].recipe
    found = progress(faces_of(chosen, models), "measuring", total=len(chosen), console=console)
    chips = (face.chip(recipe) for face in found if face is not None)
    data = models.ensure(network).read_bytes()
    ranges = measure_ranges(network, data, chips, f"{len(chosen)} photos of {photos.name}")
    target = out / f"{network}.ranges.json"
    try:
        write_atomically(target, msgspec.json.format(msgspec.json.encode(ranges), indent=1) + b"\n")
    except OSError as error:
        raise SourceError(f"{target} cannot be written ({error.strerror}); choose another --out") from error
    console.print(f"{target}: {len(ranges.tensors)} tensors over {ranges.n_chips} faces", soft_wrap=True)
