"""The tables of the gallery, as migrations: entry i takes `user_version` i to i + 1. Only ever append.

`people` holds the enrolled and the strangers alike, so that merging, templates and forgetting work the
same for both. A merge is a pointer (`merged_into`): templates never move, so undoing it is exact.
"""

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
