"""The whole configuration: one TOML file, read once, as frozen structs.

Each stage owns its struct; this module only assembles them. Processes that need less read
`outline.py` and stay small.
"""

from pathlib import Path

from ..pipelines.assembly import StageConfigs
from ..pipelines.detector import DetectorConfig, site_detector
from ..pipelines.engines.engine import EngineConfig
from ..pipelines.ensemble import EnsembleConfig, check_members
from ..pipelines.errors import ConfigError
from ..pipelines.identity.identity import IdentityConfig
from ..pipelines.loop.flag_policy import FlagsConfig
from ..pipelines.loop.sample import SamplesConfig
from ..pipelines.privacy.retention import RecordsConfig
from ..pipelines.releases.trial import PromotionConfig
from ..pipelines.tracker import TrackerConfig
from . import toml_file
from .outline import Outline, check_names
from .remote import check_remote


class Config(Outline, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. All tables but `[[camera]]` may be left out."""

    detector: DetectorConfig = DetectorConfig()
    """How faces are found."""
    tracker: TrackerConfig = TrackerConfig()
    """How faces are followed."""
    engine: EngineConfig = EngineConfig()
    """What runs the networks."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """Which networks look at a face."""
    identity: IdentityConfig = IdentityConfig()
    """How a face is given a name."""
    promotion: PromotionConfig = PromotionConfig()
    """How new releases are tried."""
    flags: FlagsConfig = FlagsConfig()
    """Which faces the daemon keeps on its own."""
    samples: SamplesConfig = SamplesConfig()
    """What is kept of flagged faces, and for how long."""
    records: RecordsConfig = RecordsConfig()
    """How long receipts and audit log are kept."""

    @property
    def stages(self) -> StageConfigs:
        """The configurations of what happens to a face."""
        return StageConfigs(
            detector=self.detector,
            tracker=self.tracker,
            engine=self.engine,
            ensemble=self.ensemble,
            identity=self.identity,
        )


def load_config(path: Path | None) -> Config:
    """Return the configuration in `path`; None gives the defaults, without a camera.

    Raises:
        ConfigError: unreadable, an unknown key, a value out of range, two cameras of one name, a detector's
            file that is none.
    """
    if path is None:
        return Config()
    config = toml_file.decode(toml_file.read_file(path), Config, str(path))
    check_names([camera.name for camera in config.camera], str(path))
    try:
        check_remote(config.remote)
        check_members(config.ensemble)
        site_detector(config.detector)
        _check_automatic(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _check_automatic(config: Config) -> None:
    """Refuse an automatic promotion that could never be."""
    if not config.promotion.automatic:
        return
    if not config.learning.enabled:
        raise ConfigError(
            "[promotion] automatic is for what is learned here; set [learning] enabled = true too"
        )
    if not config.promotion.gate_data:
        raise ConfigError(
            "[promotion] automatic measures its gates on faces with labels; name a FER+ folder or a task "
            "file in gate_data"
        )


def find_config(given: Path | None = None) -> Config:
    """Return the configuration of `given`, VISAGED_CONFIG or the default files; else the defaults."""
    return load_config(toml_file.find_file(given))
