"""One TOML file: what is wrong with it is said with file, key and what is allowed."""

import re
from pathlib import Path

import pytest
from visaged.daemon import toml_file
from visaged.daemon.config import Config, find_config, load_config
from visaged.daemon.outline import Outline, default_runtime, load_outline, prepare_folder
from visaged.pipelines.errors import ConfigError
from visaged.tools.check_config import reference

ROOT = Path(__file__).parents[2]
CAMERA = '[[camera]]\nname = "door"\nsource = "/dev/video0"\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "visaged.toml"
    file.write_text(text)
    return file


def test_a_camera_is_enough(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, CAMERA))

    assert [camera.name for camera in config.camera] == ["door"]
    assert config == Config(camera=config.camera)


def test_without_a_file_there_are_the_defaults() -> None:
    assert load_config(None) == Config()


def test_every_table_can_be_set(tmp_path: Path) -> None:
    text = f"""
    instance = "lab"
    [paths]
    state = "{tmp_path}/state"
    wheels = "wheels"
    [tracker]
    [detector]
    [ensemble]
    max_batch = 4
    [identity]
    [remote]
    results = "tcp://127.0.0.1:5560"
    keys = "{tmp_path}/keys"
    [metrics]
    port = 0
    [logging]
    level = "debug"
    {CAMERA}
    """
    config = load_config(write(tmp_path, text))

    assert config.instance == "lab"
    assert config.paths.state == tmp_path / "state"
    assert config.paths.wheels == Path.cwd() / "wheels"
    assert (config.ensemble.max_batch, config.metrics.port, config.logging.level) == (4, 0, "debug")


def test_the_outline_reads_the_same_file_and_leaves_the_rest(tmp_path: Path) -> None:
    file = write(tmp_path, f"{CAMERA}[detector]\nnonsense = 1\n")

    outline = load_outline(file)

    assert [camera.name for camera in outline.camera] == ["door"]
    with pytest.raises(ConfigError, match="nonsense"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[camra]\n", r"unknown key 'camra' in the top level; did you mean 'camera'\? allowed: .*tracker"),
        ("[ensemble]\nmax_bach = 3\n", r"unknown key 'max_bach' in ensemble; did you mean 'max_batch'\?"),
        ("[ensemble]\nmax_batch = 0\n", r"ensemble\.max_batch \(it is 0\): expected int >= 1"),
        ('[ensemble]\nmax_batch = "3"\n', r"ensemble\.max_batch \(it is '3'\): expected int, got str"),
        ('[logging]\nlevel = "loud"\n', r"logging\.level \(it is 'loud'\): .*none of debug, error, info"),
        ("[metrics]\nport = 70000\n", r"metrics\.port \(it is 70000\): expected int <= 65000"),
        ("[paths]\nstate = 3\n", r"paths\.state \(it is 3\): expected a path in quotes"),
        ('[paths]\nstate = ""\n', r"paths\.state \(it is ''\): expected a path in quotes"),
        (CAMERA + 'nmae = "x"\n', r"unknown key 'nmae' in camera number 1; did you mean 'name'\?"),
        ('[[camera]]\nname = "door"\n', r"camera number 1: .*required field source"),
        (CAMERA.replace("door", "Do or"), r"camera number 1\.name \(it is 'Do or'\): expected .*matching"),
        (CAMERA + CAMERA, r"two cameras are named 'door'"),
        (CAMERA + '[remote]\nresults = "udp://1.2.3.4:5"\n', r"remote\.results .*udp.*tcp://ADDRESS:PORT"),
        (CAMERA + '[remote]\ncontrol = "10.0.0.5:5560"\n', r"remote\.control .*tcp://ADDRESS:PORT"),
        ('[remote]\nresults = "tcp://*:5560"\ncontrol = "tcp://*:5560"\n', r"remote\.control.*of its own"),
        ('instance = "a"\ninstance = "b"\n', r"not valid TOML: .*line 2"),
        ("[ensemble\n", r"not valid TOML: .*line 1"),
        ('[ensemble]\nmembers = ["face-resnet", "emo"]\n', r"members: no network is called 'emo'; allowed"),
        ('[detector]\nkind = "site"\n', r"detector: kind = \"site\" needs site = FILE"),
        ('[detector]\nkind = "mmod"\nsite = "a.svm"\n', r"detector: site looks beside"),
        ('[detector]\nsite = "gone.svm"\n', r"\[detector\] site: .*gone\.svm is no file .*train-detector"),
        ('[detector]\nsite = "/dev/zero"\n', r"\[detector\] site: /dev/zero is no file"),
        ("camera = 3\n", r"camera \(it is 3\): expected array"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(tmp_path: Path, text: str, sentence: str) -> None:
    file = write(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(file)

    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_a_file_that_is_no_text_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "visaged.toml"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"cannot read .*visaged\.toml"):
        load_config(file)


def test_the_named_file_goes_before_the_variable_and_that_before_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for folder in (tmp_path / "here", tmp_path):
        write(folder, CAMERA)
    named = tmp_path / "named.toml"
    named.write_text(CAMERA)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv(toml_file.VARIABLE, raising=False)

    assert toml_file.find_file() == tmp_path / "here" / "visaged.toml"
    monkeypatch.setenv(toml_file.VARIABLE, str(tmp_path / "visaged.toml"))
    assert toml_file.find_file() == tmp_path / "visaged.toml"
    assert toml_file.find_file(named) == named


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_named_file_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    missing = tmp_path / "absent.toml"
    monkeypatch.setenv(toml_file.VARIABLE, str(missing))

    with pytest.raises(ConfigError, match=r"absent\.toml given by .* does not exist"):
        find_config(None if by_variable else missing)


def test_no_file_at_all_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(toml_file.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toml_file, "SEARCHED", (Path("visaged.toml"),))

    assert find_config() == Config()


def test_folders_are_readable_by_owner_and_group_only(tmp_path: Path) -> None:
    made = prepare_folder(tmp_path / "a" / "b", "runtime")

    assert made.stat().st_mode & 0o007 == 0


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"cannot make the folder .*\[paths\] runtime"):
        prepare_folder(tmp_path / "file" / "run", "runtime")


def test_the_runtime_folder_follows_the_desktop_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")

    assert default_runtime() == Path("/run/user/1000/visaged")
    assert Outline().paths.runtime == Path("/run/user/1000/visaged")


def test_the_reference_is_up_to_date_with_the_code() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()

    assert written == reference(), "run: visaged check-config --markdown > docs/configuration.md"


def test_every_key_is_explained() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]

    assert len(rows) > 30
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[promotion]\nautomatic = true\ngate_data = ["faces"]\n', r"set \[learning\] enabled = true"),
        ("[promotion]\nautomatic = true\n[learning]\nenabled = true\n", "gate_data"),
    ],
)
def test_an_automatic_promotion_that_could_never_be_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(write(tmp_path, text + CAMERA))


def test_an_automatic_promotion_measures_on_what_is_named(tmp_path: Path) -> None:
    text = (
        '[promotion]\nautomatic = true\ngate_data = ["~/ferplus", "moods.toml"]\n[learning]\nenabled = true\n'
    )

    config = load_config(write(tmp_path, text + CAMERA))

    assert [path.name for path in config.promotion.gate_data] == ["ferplus", "moods.toml"]
