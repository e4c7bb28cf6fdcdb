"""The folder of keys: what is written, what is secret, what is refused, what changes are seen."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from visaged.daemon.curve import new_pair, public_of
from visaged.daemon.keys import (
    CREDENTIAL,
    KeyStore,
    Role,
    add_client,
    create_server,
    read_client,
    read_clients,
    revoke_client,
    rotate_server,
    server_lines,
)
from visaged.pipelines.errors import ConfigError, VisagedError


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    create_server(folder)
    return folder


def test_a_client_file_holds_what_is_needed_to_connect(keys: Path, tmp_path: Path) -> None:
    add_client(keys, "laptop", [Role.SUBSCRIBE], tmp_path / "laptop.key")

    key = read_client(tmp_path / "laptop.key")
    store = KeyStore(keys)

    assert key.server == store.server.public
    assert key.pair.public == public_of(key.pair.secret)
    client = store.find(key.pair.public)
    assert client is not None
    assert (client.name, client.roles) == ("laptop", (Role.SUBSCRIBE,))


def test_secrets_are_in_private_files_only(keys: Path, tmp_path: Path) -> None:
    add_client(keys, "laptop", [Role.ADMIN], tmp_path / "laptop.key")
    secret = read_client(tmp_path / "laptop.key").pair.secret

    holders = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text()]
    assert holders == [tmp_path / "laptop.key"]
    for path in (keys / "server.key", tmp_path / "laptop.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.rglob(".*")] == []  # no drafts


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.chmod(0o640), "read by others; run  chmod 600"),
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("secret = 3"), r"laptop\.key: "),
        (lambda path: path.write_text(path.read_text().replace('secret = "', 'secret = "x')), "no pair"),
        (lambda path: path.write_bytes(b"\xff\x00"), "cannot read"),
    ],
)
def test_a_client_file_that_cannot_be_used_is_explained_without_its_secret(
    keys: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    file = tmp_path / "laptop.key"
    add_client(keys, "laptop", [Role.ADMIN], file)
    secret = read_client(file).pair.secret
    spoil(file)

    with pytest.raises(ConfigError, match=sentence) as caught:
        read_client(file)
    assert secret not in str(caught.value)


def test_a_pair_of_two_halves_is_refused(keys: Path) -> None:
    one, other = new_pair(), new_pair()
    (keys / "server.key").write_text(server_lines(type(one)(one.public, other.secret)))

    with pytest.raises(ConfigError, match="no pair"):
        KeyStore(keys)


def test_without_a_server_key_the_sentence_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="visaged keys init"):
        KeyStore(tmp_path)


def test_a_server_key_is_not_overwritten(keys: Path) -> None:
    before = (keys / "server.key").read_text()

    with pytest.raises(VisagedError, match="visaged keys rotate"):
        create_server(keys)
    assert (keys / "server.key").read_text() == before


def test_a_systemd_credential_goes_first_and_is_not_rotated(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = new_pair()
    credential = tmp_path / CREDENTIAL
    credential.write_text(server_lines(pair))
    credential.chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    assert KeyStore(keys).server == pair
    with pytest.raises(VisagedError, match="credential of systemd"):
        rotate_server(keys)


def test_a_name_can_be_used_again_after_it_was_revoked(keys: Path, tmp_path: Path) -> None:
    first = add_client(keys, "laptop", [Role.ADMIN], tmp_path / "1.key")
    with pytest.raises(VisagedError, match="there is a client laptop already"):
        add_client(keys, "laptop", [Role.ADMIN], tmp_path / "2.key")
    revoke_client(keys, "laptop")
    second = add_client(keys, "laptop", [Role.FLAG], tmp_path / "3.key")
    store = KeyStore(keys)

    assert store.find(first.public) is None
    assert store.find(second.public) == second
    assert not (tmp_path / "2.key").exists()


@pytest.mark.parametrize("name", ["", "../server", "a/b", ".hidden", 'x"y', "n\nroles", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(keys: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="matching"):
        add_client(keys, name, [Role.ADMIN], tmp_path / "x.key")

    assert not (tmp_path / "x.key").exists()


def test_a_file_in_the_way_is_left_and_the_client_is_not_added(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "laptop.key").write_text("mine")

    with pytest.raises(VisagedError, match="left as it is"):
        add_client(keys, "laptop", [Role.ADMIN], tmp_path / "laptop.key")
    assert (tmp_path / "laptop.key").read_text() == "mine"
    assert read_clients(keys) == ([], [])


def test_revoking_somebody_unknown_names_those_who_can_be(keys: Path, tmp_path: Path) -> None:
    add_client(keys, "wall", [Role.SUBSCRIBE], tmp_path / "wall.key")

    with pytest.raises(VisagedError, match="no client laptop to revoke; those that may connect: wall"):
        revoke_client(keys, "laptop")


@pytest.mark.parametrize("role", Role)
def test_admin_implies_every_role_and_revoking_takes_all(keys: Path, tmp_path: Path, role: Role) -> None:
    admin = add_client(keys, "boss", [Role.ADMIN], tmp_path / "boss.key")
    only = add_client(keys, "only", [role], tmp_path / "only.key")

    assert admin.may(role)
    assert [only.may(other) for other in Role] == [other is role or role is Role.ADMIN for other in Role]
    revoked = revoke_client(keys, "boss")
    assert not any(revoked.may(other) for other in Role)


def test_a_store_sees_every_change_once(keys: Path, tmp_path: Path) -> None:
    store = KeyStore(keys)
    assert not store.refresh()

    client = add_client(keys, "laptop", [Role.SUBSCRIBE], tmp_path / "laptop.key")
    assert (store.refresh(), store.refresh()) == (True, False)
    assert store.having(Role.SUBSCRIBE) == {client.public}

    revoke_client(keys, "laptop")
    assert (store.refresh(), store.refresh()) == (True, False)
    assert store.having(Role.SUBSCRIBE) == set()

    pair = rotate_server(keys)
    assert (store.refresh(), store.refresh()) == (True, False)
    assert store.server == pair


def test_a_broken_file_is_said_once_and_tried_again(keys: Path, tmp_path: Path) -> None:
    client = add_client(keys, "laptop", [Role.SUBSCRIBE], tmp_path / "laptop.key")
    file = keys / "clients" / "laptop.toml"
    good = file.read_text()
    store = KeyStore(keys)

    file.write_text("name = ")
    assert (store.refresh(), store.refresh()) == (True, False)
    assert store.find(client.public) is None
    assert "laptop.toml" in store.problems[0]

    file.write_text(good)
    assert (store.refresh(), store.refresh()) == (True, False)
    assert (store.find(client.public), store.problems) == (client, [])


def test_a_server_key_that_vanishes_does_not_end_a_running_store(keys: Path) -> None:
    store = KeyStore(keys)
    before = store.server
    (keys / "server.key").unlink()

    assert (store.refresh(), store.refresh()) == (True, False)
    assert store.server == before
    assert "not replaced" in store.problems[0]
