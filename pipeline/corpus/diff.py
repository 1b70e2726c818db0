"""The differences between a corpus and the manifest that was made of it."""

from dataclasses import dataclass
from typing import Final, Literal

from pipeline.corpus.database import Database, count, rows
from pipeline.storage import can_be_read

GONE: Final = "gone from the corpus"
CHANGED: Final = "changed in the corpus"

State = Literal["gone", "changed", "back"]
MASKING: Final[tuple[State, ...]] = ("gone", "changed")

FRESH: Final = "SELECT row FROM listing ANTI JOIN manifest USING (recording_id)"
COMPARED: Final = """
    CREATE OR REPLACE TABLE compared AS
    WITH joined AS (
        SELECT
            manifest.row, listing.row AS listed, listing.uri, listing.uri <> manifest.uri AS moved,
            coalesce(manifest.masked, '') <> '' AS is_masked, manifest.error IS NOT NULL AS failed,
            manifest.transient, listing.row IS NULL OR (listing.unusable IS NOT NULL AND NOT failed) AS gone,
            listing.size_bytes = manifest.size_bytes AS same_size,
            listing.member IS NOT DISTINCT FROM manifest.member
                AND listing.start_s IS NOT DISTINCT FROM manifest.start_s
                AND listing.stop_s IS NOT DISTINCT FROM manifest.stop_s AS same_part,
            failed AND NOT is_masked AND listing.row IS NOT NULL AND listing.unusable IS NULL AS readable,
            same_size AND listing.modified_ns = manifest.modified_ns AS same_state
        FROM manifest LEFT JOIN listing USING (recording_id)
    ), stated AS (
        SELECT
            row, listed, uri, coalesce(moved, false) AS moved, readable AND NOT same_state AS unread,
            readable AND same_state AND transient AS doubtful,
            CASE
                WHEN gone THEN if(is_masked, NULL, 'gone')
                WHEN NOT (same_part AND (same_size OR failed)) THEN if(is_masked, NULL, 'changed')
                WHEN is_masked THEN 'back'
            END AS state
        FROM joined
    )
    SELECT * FROM stated WHERE moved OR unread OR doubtful OR state IS NOT NULL
"""


@dataclass(frozen=True)
class CorpusDiff:
    """The differences between a corpus and a manifest of it: tables of the database `db`.

    `manifest` has the rows of the manifest, with their numbers as `row`. `compared` has those that differ: their `row`
    and `listed`, that of the listing; the `uri` where the recording lies now, which has `moved` if the manifest names
    another; and the `state`. A recording is `changed` if its size in bytes or its place within its file differs, and
    `unread` if its header could not be read and may be readable now; it is not changed, because the store holds
    nothing of it. A masked recording has no state but `back`, where the corpus again has it as it was.
    """

    db: Database

    @property
    def fresh(self) -> int:
        """The number of recordings of the listing that the manifest does not have."""
        return count(self.db, f"({FRESH})")

    @property
    def unread(self) -> int:
        """The number of recordings to read again."""
        return count(self.db, "compared WHERE unread")

    def names(self, state: State, most: int) -> list[str]:
        """Return the ids of the first recordings of a state."""
        query = "SELECT recording_id FROM compared JOIN manifest USING (row) WHERE state = ? ORDER BY row LIMIT ?"
        return [name for (name,) in rows(self.db, query, state, most)]

    def number(self, state: State) -> int:
        """Return the number of recordings of a state."""
        ((found,),) = rows(self.db, "SELECT count(*) FROM compared WHERE state = ?", state)
        return int(found)

    def without_masking(self) -> "CorpusDiff":
        """Return the differences without those that mask a recording."""
        self.db.execute("UPDATE compared SET state = NULL WHERE state IN ('gone', 'changed')")
        self.db.execute("DELETE FROM compared WHERE NOT moved AND NOT unread AND state IS NULL")
        return self

    def __bool__(self) -> bool:
        return count(self.db, "compared") > 0 or self.fresh > 0


def compare(db: Database) -> CorpusDiff:
    """Compare the tables `manifest` and `listing`: a manifest and the corpus as it is now."""
    db.execute(COMPARED)
    doubtful = rows(db, "SELECT row, uri FROM compared WHERE doubtful")
    opened = [row for row, uri in doubtful if can_be_read(uri)]
    db.execute("UPDATE compared SET unread = true WHERE list_contains(?, row)", [opened])
    db.execute("DELETE FROM compared WHERE NOT moved AND NOT unread AND state IS NULL")
    return CorpusDiff(db)
