"""A new key for what is stored: every row opens at every moment, whenever the process dies."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import StoreError
from visaged.pipelines.identity.gallery import Gallery
from visaged.pipelines.loop.sample import Source
from visaged.pipelines.loop.sample_store import SampleStore
from visaged.pipelines.loop.sighting import Sighting
from visaged.pipelines.privacy import rekey as rekey_module
from visaged.pipelines.privacy.rekey import STORES, Rekeying
from visaged.pipelines.privacy.seal import read_keys
from visaged.tools.rekey import rekey

from tests.crashes import die_inside_sqlite, gets_through, outcomes_of

N_PEOPLE = 5
SEEDS = range(N_PEOPLE)
STRIDE = 19  # steps of SQLite's machine from one death to the next


def face(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.1, (1, 128)).astype(np.float32)


@pytest.fixture
def state(tmp_path: Path, make_sighting: Callable[..., Sighting]) -> Path:
    folder = tmp_path / "state"
    with Gallery(folder) as gallery, SampleStore(folder) as store:
        for seed in SEEDS:
            gallery.enrol(f"person {seed}", face(seed), space="s")
        gallery.reject("person 0", face(9), space="s")
        store.add(make_sighting(1), Source.USER)
        store.add(make_sighting(2, embedding=None), Source.USER)
    return folder


def opens(state: Path) -> bool:
    """Whether everything opens and is what it was."""
    with Gallery(state) as gallery, SampleStore(state) as store:
        same = np.array_equal(gallery.templates("s").embeddings, np.concatenate([face(s) for s in SEEDS]))
        faces = [store.face(sample.id) for sample in store.samples()]
        return same and len(gallery.templates("s", negatives=True).owners) == 1 and len(faces) == 2


def test_everything_opens_with_the_new_key_alone(state: Path, tmp_path: Path) -> None:
    before = {name: read_keys(state / f"{name}.key") for name in STORES}
    config = tmp_path / "visaged.toml"
    config.write_text(f'[paths]\nstate = "{state}"\nruntime = "{tmp_path / "run"}"\n')

    rekey(drop_old=True, config=config)

    for name, old in before.items():
        assert len(new := read_keys(state / f"{name}.key")) == 1 and new != old
    assert opens(state)
    assert '"what":"rekey"' in (state / "audit.log").read_text()


def test_a_key_that_is_needed_is_not_dropped(state: Path) -> None:
    store = Rekeying(STORES["gallery"], state)
    store.begin()

    with pytest.raises(StoreError, match="6 values are sealed with an old key"):
        store.drop_old()
    with pytest.raises(StoreError, match="another `visaged rekey`"):
        Rekeying(STORES["samples"], state)
    assert store.seal_rows() == 6 and store.drop_old() == 1 and not store.is_begun()
    store.close()


def test_the_key_file_behind_a_link_is_written_and_the_link_stays(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "gallery.key"
    (state / "gallery.key").rename(target)
    (state / "gallery.key").symlink_to(target)

    store = Rekeying(STORES["gallery"], state)
    store.begin()
    store.close()

    assert (state / "gallery.key").is_symlink() and len(read_keys(target)) == 2
    assert target.stat().st_mode & 0o777 == 0o600


def rekey_and_die(state: Path, step: int) -> None:
    store = Rekeying(STORES["gallery"], state)
    if not store.is_begun():
        store.begin()
    die_inside_sqlite(step, store._file._db)
    store.seal_rows()
    store.drop_old()
    os._exit(0)  # not closed: no more than a killed process would


def die_everywhere(state: Path, scratch: Path) -> Iterator[tuple[bool, bool, int, bool, int]]:
    """Yield, for every place to die at, whether all opened then, keys then, and both after another run."""
    rekey_module.BATCH = 2
    step, is_done = 0, False
    while not is_done:
        step += STRIDE
        folder = shutil.copytree(state, scratch / str(step))
        is_done = gets_through(partial(rekey_and_die, folder, step))
        after_death = opens(folder), len(read_keys(folder / "gallery.key"))
        assert gets_through(partial(rekey_and_die, folder, 10**9))
        yield is_done, *after_death, opens(folder), len(read_keys(folder / "gallery.key"))


def test_dying_at_any_step_loses_nothing_and_the_next_run_ends_it(state: Path, tmp_path: Path) -> None:
    outcomes = outcomes_of(die_everywhere, state, tmp_path)

    assert len(outcomes) > 10, "hardly a step was tried"
    assert set(outcomes[:-1]) == {(False, True, 2, True, 1)}
    assert outcomes[-1][1:] == (True, 1, True, 1)
