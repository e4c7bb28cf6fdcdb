"""The tables of the gallery, as migrations: entry i takes `user_version` i to i + 1. Only ever append.

`people` holds the enrolled and the strangers alike, so that merging, templates and forgetting work the
same for both. A merge is a pointer (`merged_into`): templates never move, so undoing it is exact.
"""

from ..errors import GalleryError
from ..privacy.store_file import StoreKind

MIGRATIONS = (
    """
    CREATE TABLE people (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        kind        TEXT    NOT NULL CHECK (kind IN ('enrolled', 'stranger')),
        name        TEXT    NOT NULL UNIQUE COLLATE NOCASE,
        consent     TEXT    NOT NULL DEFAULT '',
        created_at  REAL    NOT NULL,
        last_seen   REAL    NOT NULL,
        merged_into INTEGER REFERENCES people (id) ON DELETE CASCADE CHECK (merged_into <> id)
    ) STRICT;
    CREATE INDEX people_merged ON people (merged_into);
    CREATE TABLE templates (
        uid         TEXT    PRIMARY KEY,
        person      INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        is_negative INTEGER NOT NULL DEFAULT 0,
        space       TEXT    NOT NULL,
        quality     REAL    NOT NULL,
        source      TEXT    NOT NULL,
        created_at  REAL    NOT NULL,
        sealed      BLOB    NOT NULL
    ) STRICT;
    CREATE INDEX templates_person ON templates (person);
    CREATE TABLE merges (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        kept        INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        absorbed    INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        created_at  REAL    NOT NULL,
        undone_at   REAL
    ) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    INSERT INTO facts VALUES ('strangers', '0');
    """,
)

ROOTS = """
    WITH RECURSIVE root (id, top) AS (
        SELECT id, id FROM people WHERE merged_into IS NULL
        UNION ALL SELECT p.id, root.top FROM people p JOIN root ON p.merged_into = root.id)
"""  # every person -> the one that it was merged into, however many merges away

GALLERY = StoreKind("gallery", GalleryError, MIGRATIONS)


def context_of(uid: str, person: int, space: str, is_negative: bool) -> str:
    """Return what a sealed embedding is bound to: moved to another row it does not open."""
    return f"{'negative' if is_negative else 'template'} {uid} of person {person} in {space}"
