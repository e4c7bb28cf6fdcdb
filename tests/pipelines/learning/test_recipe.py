"""Recipes: what is wrong with one is said with the file; the shipped ones can be read."""

from pathlib import Path

import pytest
from visaged.pipelines.errors import ConfigError

pytest.importorskip("torch", reason="torch is not installed (extra `learn`)")
from visaged.pipelines.learning.recipe import read_recipe

pytestmark = pytest.mark.torch
RECIPES = Path(__file__).parents[3] / "pipelines" / "learning" / "recipes"
STAGE = '[[stage]]\nname = "one"\ndata = "faces"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_makes_the_network_that_is_named_like_it(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_a_trial_varies_seed_and_normalisation_and_no_more(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, 'name = "small"\n' + STAGE + STAGE.replace("one", "two")))

    other = recipe.varied(seed=7, normalisation="gcn")

    assert [stage.training.seed for stage in other.stage] == [7, 7]
    assert other.normalisation_config().gcn and other.network == recipe.network
    assert recipe.varied() == recipe
    with pytest.raises(ConfigError, match="no normalisation is called 'light'"):
        recipe.varied(normalisation="light")
    with pytest.raises(ConfigError, match='"dlib_resnet" and the normalisation "dlib" go together'):
        recipe.varied(normalisation="dlib")


def test_a_stage_is_enough_and_stages_keep_their_order(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, 'name = "small"\n' + STAGE + STAGE.replace("one", "two")))

    assert [stage.name for stage in recipe.stage] == ["one", "two"]
    assert recipe.stage[0].augmentation_config().horizontal_flip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (STAGE, "missing required field `name`"),
        ('name = "x"\n', "missing required field `stage`"),
        ('name = "x"\nstage = []\n', "length >= 1"),
        ('name = "x"\n' + STAGE + STAGE, "two stages are called 'one'"),
        ('name = "x"\n' + STAGE + 'augmentation = "slide"\n', "no augmentation is called 'slide'"),
        ('name = "x"\nnormalisation = "zcb"\n' + STAGE, "no normalisation is called 'zcb'"),
        ('name = "x"\n' + STAGE + '[[stage.loss]]\nkind = "hinge"\n', "there is no loss 'hinge'"),
        ('name = "x"\n' + STAGE + "[stage.training]\nepoch = 3\n", "unknown field `epoch`"),
        ("name = x\n", "is no recipe"),
        ('name = "x"\nnormalisation = "dlib"\n' + STAGE, "go together"),
        (
            'name = "x"\n[network]\nkind = "dlib_resnet"\nsize = 150\nchannels = 3\n' + STAGE,
            "go together",
        ),
        ('name = "x"\n[network]\nkind = "dlib_resnet"\n' + STAGE, "takes size = 150"),
    ],
)
def test_a_mistake_is_said_with_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, text))

    assert sentence in str(caught.value)


def test_a_missing_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
