"""Tell pictures that look the same, whatever their size and light, by 64 bits each.

Shape letters: N pictures, H W picture.
"""

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

NEAR_BITS = 4  # of 64: pictures whose hashes differ by no more are the same, saved, scaled or lit otherwise


def difference_hash(rgb: U8) -> int:
    """Return 64 bits that say where a picture of 9 x 8 grey px grows brighter from left to right.

    Args:
        rgb: `(H, W, 3)` uint8.

    Source: Krawetz, "Kind of like that", 2013.
    """
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def looks_like(look: int, others: U64) -> Bool:
    """Return `(N,)`: which of `others` `(N,)` look the same as `look`; all are of `difference_hash`."""
    is_near: Bool = np.bitwise_count(others ^ np.uint64(look)) <= NEAR_BITS
    return is_near


def repeats(looks: U64) -> Bool:
    """Return `(N,)`: whether one before it looks the same, of those that repeat nothing themselves.

    So what is left differs pair by pair, and the first of each kind is left.
    """
    firsts, n_firsts = np.zeros_like(looks), 0
    is_repeat = np.zeros(len(looks), bool)
    for index, look in enumerate(looks):
        is_repeat[index] = looks_like(int(look), firsts[:n_firsts]).any()
        if not is_repeat[index]:
            firsts[n_firsts] = look
            n_firsts += 1
    return is_repeat
