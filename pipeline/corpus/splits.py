"""The split of each recording: by speaker, in the configured fractions of each language's duration."""

from typing import Final

from pipeline.config import SplitConfig
from pipeline.corpus.database import Database, rows

SPEAKERS: Final = """
    CREATE TABLE speakers AS
    SELECT label, speaker, sum(usable_ns) AS duration_ns, max(split) AS split FROM recordings GROUP BY label, speaker
"""
DECIDED: Final = """
    CREATE TABLE decided AS
    SELECT speaker, max(split) AS split FROM speakers WHERE split IS NOT NULL GROUP BY speaker
"""
UNDECIDED: Final = """
    CREATE TABLE undecided AS
    SELECT speaker, min(label) AS label, count(*) > 1 AS shared FROM speakers ANTI JOIN decided USING (speaker)
    WHERE duration_ns > 0 GROUP BY speaker
"""
DECIDE: Final = """
    INSERT INTO decided
    WITH languages AS (  -- the first speakers go to the splits that are empty
        SELECT
            label, sum(duration_ns) AS total_ns,
            coalesce(sum(duration_ns) FILTER (decided.split = 'train'), 0) AS training_ns,
            coalesce(sum(duration_ns) FILTER (decided.split = 'validation'), 0) AS validation_ns,
            coalesce(sum(duration_ns) FILTER (decided.split = 'test'), 0) AS test_ns,
            if(training_ns = 0, ['train'], []) || if(test_ns = 0, ['test'], [])
                || if(validation_ns = 0, ['validation'], []) AS empty
        FROM speakers LEFT JOIN decided USING (speaker) WHERE list_contains($labels, label) GROUP BY label
    ), ordered AS (
        SELECT
            *, row_number() OVER (
                PARTITION BY label ORDER BY stable_hash($seed || chr(0) || speaker), speaker
            ) AS place
        FROM undecided JOIN (SELECT label, speaker, duration_ns FROM speakers) USING (label, speaker)
        WHERE list_contains($labels, label)
    ), placed AS (
        SELECT *, empty[place] AS first FROM ordered JOIN languages USING (label)
    ), filled AS (
        SELECT
            *, sum(if(first = 'train', duration_ns, 0)) OVER (PARTITION BY label) + training_ns AS in_training_ns,
            sum(if(first = 'validation', duration_ns, 0)) OVER (PARTITION BY label) + validation_ns AS in_validation_ns
        FROM placed
    ), others AS (  -- the middle of each speaker, from the beginning of the first one
        SELECT *, sum(duration_ns) OVER (PARTITION BY label ORDER BY place) - duration_ns / 2 AS middle_ns
        FROM filled WHERE first IS NULL
    ), trained AS (
        SELECT *, in_training_ns + middle_ns <= $train * total_ns AS in_training FROM others
    ), later AS (
        SELECT *, sum(duration_ns) OVER (PARTITION BY label ORDER BY place) - duration_ns / 2 AS later_middle_ns
        FROM trained WHERE NOT in_training
    )
    SELECT speaker, first FROM placed WHERE first IS NOT NULL
    UNION ALL SELECT speaker, 'train' FROM trained WHERE in_training
    UNION ALL SELECT
        speaker, if(in_validation_ns + later_middle_ns <= $validation * total_ns, 'validation', 'test') FROM later
"""


def assign_splits(db: Database, fractions: SplitConfig, seed: int) -> None:
    """Create the table `decided` (speaker, split) from the table `recordings` (label, speaker, usable_ns, split).

    `usable_ns` is the duration that training can use, an integer so that sums do not depend on the order. `speaker`
    is never NULL. Rows whose `split` is not NULL have a split already.

    All recordings of a speaker are in one split. Within a language, speakers are ordered by a stable hash of seed and
    name. The first speaker goes to training, the second to test, the third to validation. Those that follow go to
    training up to its fraction of the language's duration, then to validation up to its fraction, and the rest to
    test; the middle of a speaker's duration decides. A speaker of several languages keeps the split that the first
    language, by name, gave.

    Speakers that already have a split keep it, even if none of their recordings is usable. New speakers of a language
    fill its empty splits first, in the order training, test, validation, and then the fractions of the duration that
    the language has now. Splits therefore depend on which recordings were added together. A speaker without any
    usable recording has no influence on the others, and is not in the table.
    """
    for statement in (SPEAKERS, DECIDED, UNDECIDED):
        db.execute(statement)
    for labels in _steps(db):
        arguments = {"labels": labels, "seed": str(seed), "train": fractions.train, "validation": fractions.validation}
        db.execute(DECIDE, arguments)


def _steps(db: Database) -> list[list[str]]:
    """Return the languages in the order in which they are split; those of one step have no new speakers in common."""
    shared = "SELECT label FROM speakers WHERE speaker IN (SELECT speaker FROM undecided WHERE shared)"
    found = rows(db, f"SELECT DISTINCT label, label NOT IN ({shared}) FROM speakers ORDER BY label")
    return [[label for label, alone in found if alone], *([label] for label, alone in found if not alone)]
