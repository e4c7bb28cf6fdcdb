"""LFW's pairs: read as they are published, refused in a sentence, and scored as a person would."""

from pathlib import Path

import numpy as np
import pytest
from visaged.pipelines.errors import SourceError
from visaged.tools.lfw import Pair, fold_accuracy, people_of_pairs, photo_path, read_pairs

PAIRS = "2\t1\nAda\t1\t2\nBo\t3\tCy\t4\nDi\t5\t6\nBo\t1\tEd\t2\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "pairs.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pairs_are_read_with_their_fold(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, PAIRS))

    assert pairs == [
        Pair(("Ada", 1), ("Ada", 2), 0),
        Pair(("Bo", 3), ("Cy", 4), 0),
        Pair(("Di", 5), ("Di", 6), 1),
        Pair(("Bo", 1), ("Ed", 2), 1),
    ]
    assert [pair.is_same for pair in pairs] == [True, False, True, False]
    assert people_of_pairs(pairs) == {"Ada", "Bo", "Cy", "Di", "Ed"}


def test_a_photo_lies_in_the_folder_of_its_person() -> None:
    assert photo_path(Path("lfw"), ("Ada", 7)) == Path("lfw/Ada/Ada_0007.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two 1\n",
        "2\n",
        "2 1 0\n",
        "0\t1\n",
        "2\t0\nAda\t1\t2\n",
        "-2\t-1\n" + PAIRS.partition("\n")[2],
        "1\t1\nAda\t1\tx\nBo\t3\tCy\t4\n",
        "1\t1\nAda 1 2\nBo\t3\tCy\t4\n",
        PAIRS + "\n",
        b"\x89PNG\r\n\xff",
    ],
    ids=[
        "empty", "a word", "one number", "three numbers", "no folds", "empty folds", "negative",
        "no number", "spaces", "an empty line", "a picture",
    ],
)  # fmt: skip
def test_what_is_no_file_of_pairs_is_one_sentence(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"pairs\.txt is no LFW file of pairs \(.+\); name LFW's"
    ) as refused:
        read_pairs(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pairs\.txt cannot be read \(No such file.*name LFW's"):
        read_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize("text", [PAIRS.rpartition("Bo")[0], PAIRS + "Bo\t1\tEd\t2\n"], ids=["cut", "long"])
def test_a_file_that_does_not_hold_what_it_announces_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pairs and announces 4; copy it again"):
        read_pairs(written(tmp_path, text))


def test_the_threshold_of_a_fold_is_chosen_on_the_others() -> None:
    distances = np.array([0.4, 0.6, 0.4, 0.6, 0.4, 0.6, 0.7, 0.8], np.float32)
    same, folds = np.array([True, False] * 4), np.repeat(np.arange(4), 2)

    accuracy = fold_accuracy(distances, same, folds)

    # The last fold could be told apart at 0.75, but all others say 0.5, where its two of one person are lost.
    assert accuracy.tolist() == [1.0, 1.0, 1.0, 0.5]


def test_of_many_thresholds_as_good_the_middle_one_is_taken() -> None:
    distances = np.array([0.35, 0.65, 0.45, 0.55], np.float32)  # the others leave 0.35 to 0.65

    accuracy = fold_accuracy(distances, np.array([True, False] * 2), np.array([0, 0, 1, 1]))

    assert accuracy.tolist() == [1.0, 1.0]


def test_people_who_are_told_apart_score_one_and_chance_scores_half() -> None:
    folds = np.repeat(np.arange(10), 40)
    same = np.tile([True, False], 200)
    apart = np.where(same, 0.45, 0.75).astype(np.float32)
    random = np.random.default_rng(0).uniform(0.3, 1.0, 400).astype(np.float32)

    assert fold_accuracy(apart, same, folds).tolist() == [1.0] * 10
    assert 0.4 < fold_accuracy(random, same, folds).mean() < 0.6
    assert fold_accuracy(1.2 - apart, same, folds).mean() < 0.6, "near means the same"


def test_the_pairs_beside_the_repository_can_be_read(shared_data: Path) -> None:
    pairs = read_pairs(shared_data / "lfw" / "pairs_folds1-5.txt")

    assert len(pairs) == 3000 and sum(pair.is_same for pair in pairs) == 1500
    assert {pair.fold for pair in pairs} == set(range(5))
    assert photo_path(shared_data / "lfw" / "images", pairs[0].first).is_file()
