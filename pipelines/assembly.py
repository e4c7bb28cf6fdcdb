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
from .engines.engine_loader import LOADING_FACTOR, EngineLoader
from .engines.hardware import check_head_room, free_memory_bytes
from .engines.ort_engine import OrtEngine
from .engines.parity import ParityReport, compare
from .engines.parity_inputs import parity_inputs
from .ensemble import Ensemble, EnsembleConfig, build_ensemble, check_members
from .errors import ModelError
from .face_reader import PhotoReader
from .fuser import Fuser
from .identity.gallery import Gallery
from .identity.identity import Identifier, IdentityConfig
from .inference import InferencePipeline
from .mmod_detector import MmodDetector
from .model_store import ModelStore, ModelsWith
from .privacy.wall_clock import WallClock
from .registry import tolerances
from .releases.promotion import serving_release
from .releases.release import FACTORY, LoadedRelease, factory_release
from .releases.release_store import ReleaseStore, StoredRelease
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

    `serving` changes when another release or other engines take over; the rest stays.
    """

    detector: DlibDetector
    cropper: AnyCropper
    serving: LoadedRelease
    gallery: Gallery
    clock: WallClock
    identifier: Identifier
    loader: EngineLoader
    configs: StageConfigs

    @property
    def ensemble(self) -> Ensemble:
        """The networks of the serving release."""
        return self.serving.ensemble

    def pipeline(self) -> InferencePipeline:
        """Return the hot path over these stages."""
        return InferencePipeline(
            self.detector,
            self.cropper,
            self.serving,
            self.identifier,
            (self.configs.detector, self.configs.tracker, self.configs.ensemble),
        )

    def photo_reader(self) -> PhotoReader:
        """Return what reads the faces of still photos."""
        return PhotoReader(self.detector, self.cropper, self.ensemble)

    def close(self) -> None:
        """Free the engines and close the gallery."""
        self.serving.close()
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
    clock = WallClock(state)  # before a store is opened, which leaves files that look new
    configs, models, stored = choose_release(configs, state, ModelStore(cache, wheels))
    loader = EngineLoader(configs.engine, models, max_batch=configs.ensemble.max_batch)
    if may_wait:
        loader.build_missing(configs.networks)
    serving = load_release(configs.ensemble, loader, stored)
    detector = build_detector(configs.detector, models, lambda: _mmod(loader, cache))
    gallery = Gallery(state, now=clock.now)
    identifier = Identifier(gallery, serving.ensemble.embedding_space, configs.identity)
    cropper = _cropper(loader, cache)
    return Stages(detector, cropper, serving, gallery, clock, identifier, loader, configs)


def load_release(config: EnsembleConfig, loader: EngineLoader, stored: StoredRelease | None) -> LoadedRelease:
    """Load and warm a release, as `choose_release` gave it; None: the one that `config` makes.

    Raises:
        ModelError, ConfigError: as `build_ensemble`.
        ReleaseError: it is damaged.
    """
    heads = stored.heads() if stored else {}
    ensemble = build_ensemble(config, loader)
    release = stored.release if stored else factory_release(ensemble, config.fusion)
    key = release.id if stored else FACTORY
    return LoadedRelease(key, release, ensemble, Fuser(release.fusion, heads))


def load_named(configs: StageConfigs, name: str, state: Path, models: ModelStore) -> LoadedRelease:
    """Return the release called `name`, loaded, its plans built first where needed.

    Raises:
        ReleaseError: there is none, or it is damaged.
        ModelError, ConfigError: as `build_ensemble`.
    """
    ensemble = msgspec.structs.replace(configs.ensemble, release=name)
    chosen = msgspec.structs.replace(configs, ensemble=ensemble)
    configs, models, stored = choose_release(chosen, state, models)
    loader = EngineLoader(configs.engine, models, max_batch=configs.ensemble.max_batch)
    loader.build_missing(configs.ensemble.members)
    return load_release(configs.ensemble, loader, stored)


def missing_plans(configs: StageConfigs, state: Path, models: ModelStore) -> list[str]:
    """Return the members of the release that `configs` name which have no plan for this machine.

    Raises:
        ModelError, ConfigError, ReleaseError: as `load_beside`.
    """
    configs, models, _ = choose_release(configs, state, models)
    loader = EngineLoader(configs.engine, models, max_batch=configs.ensemble.max_batch)
    return [name for name in configs.ensemble.members if loader.is_plan_missing(name)]


def load_beside(configs: StageConfigs, state: Path, models: ModelStore) -> LoadedRelease:
    """Load and warm the release that `configs` name, beside the one that serves, and try its plans.

    Raises:
        ModelError: there is no room for it, or an engine answers otherwise than its network.
        ConfigError, ReleaseError: as `choose_release`.
    """
    configs, models, stored = choose_release(configs, state, models)
    loader = EngineLoader(configs.engine, models, max_batch=configs.ensemble.max_batch)
    paths = [models.ensure(name) for name in configs.ensemble.members]
    need = LOADING_FACTOR * sum(path.stat().st_size for path in paths)
    check_head_room(need, free_memory_bytes(), f"release {configs.ensemble.release}", "memory")
    loaded = load_release(configs.ensemble, loader, stored)
    try:
        for name, report in parity_of(loaded.ensemble, models).items():
            if not report.is_within:
                raise ModelError(f"release {loaded.name}: the engine of {name} is no {name}: {report}")
    except ModelError:
        loaded.close()
        raise
    return loaded


def parity_of(ensemble: Ensemble, models: ModelStore) -> dict[str, ParityReport]:
    """Return how far every member's plan is from its network in fp32, over the face that is shipped.

    A member that runs from its ONNX file has no plan that could be wrong.
    """
    reports = {}
    for member in (member for member in ensemble.members if member.info.plan):
        reference = OrtEngine(models.ensure(member.network.name))
        try:
            allowed = tolerances(member.network, member.info.precision)
            inputs = parity_inputs(member.network)
            reports[member.network.name] = compare(member.engine, reference, inputs, allowed)
        finally:
            reference.close()
    return reports


def choose_release(
    configs: StageConfigs, state: Path, models: ModelStore
) -> tuple[StageConfigs, ModelStore, StoredRelease | None]:
    """Return the configurations with the members of the release to serve, its networks, and the release.

    That is the one that is configured; else the active one; None for the factory's.

    Raises:
        ConfigError: no release is configured, and the members are no networks of the registry.
        ReleaseError: the release is missing or damaged.
    """
    name = configs.ensemble.release
    if name in ("", FACTORY):
        stored = None if name else serving_release(state)
    else:
        stored = ReleaseStore(state).get(name)
    if stored is None:
        check_members(configs.ensemble)
        return configs, models, None
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
