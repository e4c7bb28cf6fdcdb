"""The table of the sample store, as migrations: entry i takes `user_version` i to i + 1. Only ever append.

A sample is one row, so that a commit stores all of it or nothing. `sealed_face` holds picture, landmarks and
what each member said; `sealed_embedding` is apart, so that many are read quickly.
"""

from ..errors import SampleError
from ..privacy.store_file import StoreKind

MIGRATIONS = (
    """
    CREATE TABLE samples (
        id               TEXT    PRIMARY KEY,
        source           TEXT    NOT NULL,
        state            TEXT    NOT NULL,
        camera           TEXT    NOT NULL,
        track            INTEGER NOT NULL,
        seq              INTEGER NOT NULL,
        captured_at      REAL    NOT NULL,
        stored_at        REAL    NOT NULL,
        bucket           INTEGER NOT NULL CHECK (bucket BETWEEN 0 AND 9),
        release          TEXT    NOT NULL,
        space            TEXT    NOT NULL,
        quality          REAL    NOT NULL,
        disagreement     REAL    NOT NULL,
        shown_emotion    TEXT    NOT NULL,
        identity         TEXT    NOT NULL,
        seen_as          TEXT    NOT NULL COLLATE NOCASE,
        emotion          TEXT    NOT NULL,
        person           TEXT    NOT NULL COLLATE NOCASE,
        not_people       TEXT    NOT NULL,
        is_face          INTEGER,
        n_bytes          INTEGER NOT NULL,
        sealed_face      BLOB    NOT NULL,
        sealed_embedding BLOB
    ) STRICT;
    CREATE INDEX samples_by_state ON samples (state, stored_at, n_bytes)
    """,
)

SAMPLES = StoreKind("samples", SampleError, MIGRATIONS, is_durable=True)
