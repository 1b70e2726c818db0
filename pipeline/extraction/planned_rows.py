"""The rows of a part of the manifest, as arrays from which the segments of shards are made."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from pipeline.corpus.manifest import as_codes
from pipeline.corpus.sources import AudioSources
from pipeline.extraction.segments import Segment
from pipeline.schema import SPLITS


class PlannedRows:
    """The recordings of a row group that have sequences, in the order of their sequences."""

    def __init__(self, rows: pd.DataFrame, labels: Sequence[str]) -> None:
        rows = rows[rows["sequences"] > 0].sort_values("first_sequence", kind="stable")
        self.row = rows.index.to_numpy(np.int64)
        self.id = rows["recording_id"].to_numpy(object)
        self.sources = AudioSources(rows)
        self.size_bytes = rows["size_bytes"].to_numpy(np.int64)
        self.duration_s = rows["duration_s"].to_numpy(np.float64)
        self.label = as_codes(rows["label"], labels)
        self.split = as_codes(rows["split"], SPLITS)
        self.append_index = rows["append_index"].to_numpy(np.int64)
        self.masked = rows["masked"].to_numpy(object, na_value="")
        self.was_masked = rows["masked"].notna().to_numpy(np.bool_)
        self.start = rows["first_sequence"].to_numpy(np.int64)
        self.stop = self.start + rows["sequences"].to_numpy(np.int64)

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """Yield what of the sequences [start, stop), those of a shard, belongs to these recordings."""
        for i in range(
            np.searchsorted(self.stop, start, side="right"), np.searchsorted(self.start, stop, side="left")
        ):
            begin, end = max(start, int(self.start[i])), min(stop, int(self.stop[i]))
            yield Segment(
                recording=int(self.row[i]),
                recording_id=self.id[i],
                source=self.sources[i],
                size_bytes=int(self.size_bytes[i]),
                duration_s=float(self.duration_s[i]),
                label=int(self.label[i]),
                split=int(self.split[i]),
                first=begin - int(self.start[i]),
                count=end - begin,
                place=begin - start,
                masked=self.masked[i],
            )

    def files(self) -> Iterator[tuple[str | None, int, int]]:
        """Yield each file with the sequences [start, stop) of its recordings, which follow one another.

        It is None for a file that is one recording.
        """
        follows = np.r_[False, self.start[1:] == self.stop[:-1]]
        begins = np.flatnonzero(self.sources.begins_container() | ~follows)
        for first, end in zip(begins.tolist(), [*begins[1:].tolist(), len(self.row)], strict=True):
            source = self.sources[first]
            container = source.container if source.member or source.is_segment else None
            yield container, int(self.start[first]), int(self.stop[end - 1])
