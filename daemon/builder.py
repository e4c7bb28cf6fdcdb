"""The build process: builds the plans that are missing, at low priority, and ends.

infer starts it (`engine_upgrade.py`) and takes the plans over when it has ended with 0.
"""

import logging
import threading

import msgspec

from ..pipelines.assembly import choose_release
from ..pipelines.engines.engine_loader import EngineLoader
from ..pipelines.model_store import ModelStore
from .config import Config
from .step_back import step_back

log = logging.getLogger(__name__)


def run_build(config: Config, stop: threading.Event, release: str = "") -> int:
    """Build every missing plan of `config`, or until `stop`; return the exit code.

    `release` is one that does not serve yet; empty: the one that does.

    Raises:
        ModelError: one cannot be built; those before it are kept.
        ConfigError: the configuration asks for what this machine has not.
        ReleaseError: the release that is configured is missing or damaged.
    """
    step_back()
    imported = ModelStore(config.paths.cache, config.paths.wheels)
    stages = config.stages
    if release:
        ensemble = msgspec.structs.replace(stages.ensemble, release=release)
        stages = msgspec.structs.replace(stages, ensemble=ensemble)
    configs, models, _ = choose_release(stages, config.paths.state, imported)
    loader = EngineLoader(config.engine, models, max_batch=config.ensemble.max_batch)
    for network in configs.networks:
        if stop.is_set():
            return 1
        if loader.build_missing([network]):
            log.info("built the plan of %s", network)
    return 0
