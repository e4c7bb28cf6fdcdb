"""A recipe: one file that says which network learns what from which data, in how many stages.

    stage 1  face recognition (imported: dlib's trunk), or from scratch
    stage 2  expressions in the large, as FER+
    stage 3  the site's own data

Each stage begins with the network that the one before left.
"""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from ..errors import ConfigError
from ..registry import DLIB_MEAN, DLIB_SCALE, ChipRecipe, Colour
from .augmentation import AugmentationConfig, preset
from .losses import LossConfig
from .networks import NetworkConfig
from .normalisation import NormalisationConfig, normalisation_preset
from .trainer import TrainingConfig

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]


class StageConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of a recipe."""

    name: Name
    """Short name; its folder is called so."""
    data: Name
    """Which data: a name that the command line gives a folder, as `--data ferplus=FOLDER`."""
    augmentation: str | AugmentationConfig = "face"
    """A preset (`none`, `slides`, `face`, `base`) or a table of its own."""
    loss: tuple[LossConfig, ...] = (LossConfig(kind="cross_entropy"),)
    """What is minimised: a weighted sum."""
    training: TrainingConfig = TrainingConfig()
    """How."""

    def augmentation_config(self) -> AugmentationConfig:
        """Return the augmentation, a preset looked up.

        Raises:
            ConfigError: no such preset.
        """
        return preset(self.augmentation) if isinstance(self.augmentation, str) else self.augmentation


class RecipeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe."""

    name: Name
    """Short name of the network that comes out."""
    padding: Annotated[float, Meta(ge=0, le=1)] = 0.25
    """Border around the face in units of its size: that of the chips it will see live."""
    network: NetworkConfig = NetworkConfig()
    """Which network."""
    normalisation: str | NormalisationConfig = "slides"
    """A preset (`none`, `slides`, `samplewise`, `gcn`, `zca`, `tan_triggs`, `clahe`, `he_blend`, `dlib`) or a
    table. The network `dlib_resnet` takes `dlib`."""
    stage: Annotated[tuple[StageConfig, ...], Meta(min_length=1)]
    """The stages, in order."""

    def normalisation_config(self) -> NormalisationConfig:
        """Return the normalisation, a preset looked up.

        Raises:
            ConfigError: no such preset.
        """
        if isinstance(self.normalisation, str):
            return normalisation_preset(self.normalisation)
        return self.normalisation

    def chip_recipe(self) -> ChipRecipe:
        """Return how the chips of the network are cut live: raw pixels, or with dlib's mean and scale."""
        config = self.normalisation_config()
        channels = self.network.channels
        return ChipRecipe(
            size=self.network.size,
            padding=self.padding,
            colour=Colour.GREY if channels == 1 else Colour.RGB,
            light=config.light,
            mean=DLIB_MEAN if config.dlib else (0.0,) * channels,
            scale=DLIB_SCALE if config.dlib else 1.0,
        )

    def varied(self, seed: int | None = None, normalisation: str = "") -> "RecipeConfig":
        """Return the recipe with another seed in all stages, and another normalisation, where given.

        Raises:
            ConfigError: no such normalisation, or one that does not go with the network.
        """
        stages = tuple(
            structs.replace(
                stage,
                training=stage.training if seed is None else structs.replace(stage.training, seed=seed),
            )
            for stage in self.stage
        )
        other = structs.replace(self, stage=stages, normalisation=normalisation or self.normalisation)
        other.check()
        return other

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            ConfigError: two stages of one name, no such preset, dlib's network without its normalisation.
        """
        names = [stage.name for stage in self.stage]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two stages are called {twice[0]!r}; give each its own name")
        if self.normalisation_config().dlib != (self.network.kind == "dlib_resnet"):
            raise ConfigError('the network "dlib_resnet" and the normalisation "dlib" go together')
        for stage in self.stage:
            stage.augmentation_config()

    def stages_until(self, name: str) -> tuple[StageConfig, ...]:
        """Return the stages up to the one called `name`; all of them when it is empty.

        Raises:
            ConfigError: there is none of that name.
        """
        names = [stage.name for stage in self.stage]
        if name and name not in names:
            raise ConfigError(f"the recipe {self.name} has no stage {name!r}; it has {', '.join(names)}")
        return self.stage[: names.index(name) + 1] if name else self.stage


def read_recipe(path: Path) -> RecipeConfig:
    """Return the recipe in the TOML file `path`.

    Raises:
        ConfigError: missing, not TOML, an unknown key or a value out of range; two stages of one name.
    """
    try:
        recipe = msgspec.convert(tomllib.loads(path.read_text()), RecipeConfig)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a recipe") from error
    except (ValueError, RecursionError) as error:  # also numbers and nesting without an end
        raise ConfigError(f"{path} is no recipe: {error}; docs/learning.md shows one") from error
    try:
        recipe.check()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return recipe
