"""What the sample store tells the flag policy when the daemon starts: so that a restart forgets no budget."""

import numpy as np

from ...kernels.looks import difference_hash
from .flag_policy import REMEMBERED, Kept
from .sample import Source
from .sample_store import SampleStore

LOOKED_AT = 200  # pictures opened at the start, a millisecond each


def kept_in(store: SampleStore, space: str) -> Kept:
    """Return what is stored: embeddings of `space`, the looks of the newest, and when the daemon kept some.

    Raises:
        StoreError: a sample does not open.
    """
    samples = store.samples()[::-1]
    looks = [difference_hash(store.face(sample.id).chip) for sample in samples[:LOOKED_AT]]
    at = tuple(sample.captured_at for sample in samples if sample.source is not Source.USER)
    return Kept(store.embeddings(space, REMEMBERED), np.array(looks, np.uint64), at)
