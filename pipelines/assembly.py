"""Put the stages together from their configurations: what the daemon, replay and enrolment all run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from .cropper import AnyCropper, Cropper
from .detector import DetectorConfig, DlibDetector, build_detector
from .engines.engine import EngineConfig
from .engines.engine_loader import EngineLoader
from .ensemble import Ensemble, EnsembleConfig, build_ensemble, check_members
from .errors import ModelError
from .face_reader import PhotoReader
from .fuser import Fuser
from .identity.gallery import Gallery
from .identity.identity import Identifier, IdentityConfig
from .inference import InferencePipeline
from .mmod_detector import MmodDetector
from .model_store import ModelStore, ModelsWith
from .release import Release, factory_release
from .release_store import ReleaseStore, StoredRelease
from .tracker import TrackerConfig

log = logging.getLogger(__name__)


class StageConfigs(Struct, frozen=True, kw_only=True):
    """The configuration of every stage."""

    detector: DetectorConfig = DetectorConfig()
    tracker: TrackerConfig = TrackerConfig()
    engine: EngineConfig = EngineConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    identity: IdentityConfig = IdentityConfig()

    @property
    def networks(self) -> tuple[str, ...]:
        """Every network that runs."""
        return (*self.ensemble.members, *(["mmod"] if self.detector.kind == "mmod" else []))


@dataclass(slots=True)
class Stages:
    """The loaded networks and the gallery. Owned by the thread that assembled them.

    `ensemble` changes when another takes over; the rest stays.
    """

    detector: DlibDetector
    cropper: AnyCropper
    ensemble: Ensemble
    fuser: Fuser
    release: Release
    gallery: Gallery
    identifier: Identifier
    loader: EngineLoader
    configs: StageConfigs

    def pipeline(self) -> InferencePipeline:
        """Return the hot path over these stages."""
        return InferencePipeline(
            self.detector,
            self.cropper,
            self.ensemble,
            self.fuser,
            self.identifier,
            (self.configs.detector, self.configs.tracker, self.configs.ensemble),
        )

    def photo_reader(self) -> PhotoReader:
        """Return what reads the faces of still photos."""
        return PhotoReader(self.detector, self.cropper, self.ensemble)

    def close(self) -> None:
        """Free the engines and close the gallery."""
        self.ensemble.close()
        self.detector.close()
        self.gallery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def assemble(
    configs: StageConfigs, *, state: Path, cache: Path, wheels: Path | None = None, may_wait: bool = True
) -> Stages:
    """Load every stage, importing the networks and building their plans first where needed.

    Args:
        configs: of every stage.
        state: folder of the gallery and its key.
        cache: folder of the imported networks and their plans.
        wheels: folder of archives for a box without network.
        may_wait: whether plans that are missing are built now, a second each on a CPU. Else ONNX Runtime
            stands in for them.

    Raises:
        ModelError: a weights file is missing or corrupt, or a plan cannot be built.
        ConfigError: a network or a device is asked for that is not here.
        ReleaseError: the release that is configured is missing or damaged.
        StoreError: the gallery cannot be opened.
    """
    configs, models, stored = choose_release(configs, state, ModelStore(cache, wheels))
    loader = EngineLoader(configs.engine, models, max_batch=configs.ensemble.max_batch)
    if may_wait:
        loader.build_missing(configs.networks)
    ensemble = build_ensemble(configs.ensemble, loader)
    detector = build_detector(configs.detector, models, lambda: _mmod(loader, cache))
    gallery = Gallery(state)
    identifier = Identifier(gallery, ensemble.embedding_space, configs.identity)
    release = stored.release if stored else factory_release(ensemble, configs.ensemble.fusion)
    fuser = Fuser(release.fusion, stored.heads() if stored else {})
    cropper = _cropper(loader, cache)
    return Stages(detector, cropper, ensemble, fuser, release, gallery, identifier, loader, configs)


def choose_release(
    configs: StageConfigs, state: Path, models: ModelStore
) -> tuple[StageConfigs, ModelStore, StoredRelease | None]:
    """Return the configurations with the members of the release to serve, its networks, and the release.

    Raises:
        ConfigError: no release is configured, and the members are no networks of the registry.
        ReleaseError: the release is missing or damaged.
    """
    if not configs.ensemble.release:
        check_members(configs.ensemble)
        return configs, models, None
    stored = ReleaseStore(state).get(configs.ensemble.release)
    networks = stored.networks()
    ensemble = msgspec.structs.replace(configs.ensemble, members=tuple(networks))
    return msgspec.structs.replace(configs, ensemble=ensemble), ModelsWith(models, networks), stored


def _cropper(loader: EngineLoader, cache: Path) -> AnyCropper:
    """Return the cropper of the device that the networks run on."""
    if (gpu := loader.gpu()) is None:
        return Cropper()
    from .engines.cuda_kernels import CudaCropper

    try:
        return CudaCropper(gpu, cache)
    except ModelError as error:
        log.warning("chips are cut on the CPU: %s", error)
        return Cropper()


def _mmod(loader: EngineLoader, cache: Path) -> MmodDetector:
    engine = loader.load("mmod").engine
    if (gpu := loader.gpu()) is None:
        return MmodDetector(engine)
    from .engines.cuda_kernels import CudaPainter

    try:
        return MmodDetector(engine, CudaPainter(gpu, cache).paint)
    except ModelError as error:
        log.warning("the detector's pyramid is made on the CPU: %s", error)
        return MmodDetector(engine)
