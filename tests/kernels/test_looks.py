"""Pictures that look the same: found whatever their size and light, and told from others."""

import cv2
import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from visaged.kernels.looks import NEAR_BITS, difference_hash, looks_like, repeats

U8 = npt.NDArray[np.uint8]


def drawn(seed: int, size: int = 96) -> U8:
    """A picture of soft blots."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def test_the_hash_survives_scaling_and_other_light_but_not_another_picture() -> None:
    first = drawn(1)
    darker = (first * 0.7).astype(np.uint8)
    smaller = np.asarray(cv2.resize(first, (64, 64), interpolation=cv2.INTER_AREA), np.uint8)

    for same in (darker, smaller):
        assert (difference_hash(first) ^ difference_hash(same)).bit_count() <= NEAR_BITS
    assert (difference_hash(first) ^ difference_hash(drawn(2))).bit_count() > 15


def test_looks_are_alike_up_to_so_many_bits() -> None:
    others = np.array([0, 0b1111, 0b11111, 2**64 - 1], np.uint64)

    assert looks_like(0, others).tolist() == [True, True, False, False]
    assert looks_like(2**64 - 1, others).tolist() == [False, False, False, True]
    assert looks_like(0, others[:0]).tolist() == []


KINDS = st.sampled_from([0, 0xFFFF, 0xFFFF0000, 2**64 - 1])
LOOKS = st.lists(st.builds(lambda kind, bit: kind ^ (1 << bit), KINDS, st.integers(0, 63)), max_size=30)


@given(LOOKS)
def test_what_repeats_nothing_differs_pair_by_pair_and_the_rest_is_like_one_of_it(looks: list[int]) -> None:
    hashes = np.array(looks, np.uint64)

    is_repeat = repeats(hashes)
    firsts = hashes[~is_repeat]

    assert not is_repeat[:1].any()
    assert all(looks_like(int(look), firsts).sum() == 1 for look in firsts)
    assert all(looks_like(int(look), firsts).any() for look in hashes[is_repeat])
