"""Bad rows are set aside and counted; reading goes on until they are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dfmvr.data import storage
from dfmvr.data.sample import BadRow, Sample, decode_row
from dfmvr.data.settings import DataSettings


class TooManyBadRows(RuntimeError):
    """More of a split's rows are bad than the settings allow: mend the data; trying again cannot help."""


class Rejects:
    """The bad rows met so far, each once however often it is read."""

    def __init__(self, max_bad_share: float, rows: int, uri: str | None = None) -> None:
        """Start with none.

        Args:
            max_bad_share: share of `rows` above which `add` raises.
            rows: of the split that is read.
            uri: JSON lines file that the bad rows are listed in; None keeps them in memory.
        """
        self.max_bad_share, self.rows, self.uri = max_bad_share, rows, uri
        self.items: list[dict[str, Any]] = []
        self._seen: set[tuple[str, int]] = set()

    def add(self, error: BadRow) -> None:
        """Set a row aside.

        Raises:
            TooManyBadRows: the share of bad rows is now above `max_bad_share`.
        """
        if (error.file, error.row) in self._seen:
            return
        self._seen.add((error.file, error.row))
        self.items.append({"file": error.file, "row": error.row, "reason": error.reason})
        if self.uri is not None:
            lines = "".join(json.dumps(item) + "\n" for item in self.items)
            storage.write_bytes(self.uri, lines.encode())
        self.check(len(self.items))

    def check(self, count: int) -> None:
        """Compare a number of bad rows with the share that may be bad.

        Args:
            count: of bad rows, here or of several readers together.

        Raises:
            TooManyBadRows: the share is above `max_bad_share`; the message shows the last row met here.
        """
        if count <= self.max_bad_share * self.rows:
            return
        last = [
            f"; the last one: {item['file']}, row {item['row']}: {item['reason']}" for item in self.items[-1:]
        ]
        listed = f"; all are listed in {self.uri}" if self.uri else ""
        raise TooManyBadRows(
            f"{count} of {self.rows} rows are bad, expected a share of at most {self.max_bad_share:g} "
            f"(data.max_bad_share){''.join(last)}{listed}"
        )


def decode_rows(rows: Iterable[Mapping[str, Any]], settings: DataSettings, rejects: Rejects) -> list[Sample]:
    """Decode stored rows, setting bad ones aside.

    Args:
        rows: column name -> value, with the columns `path` (the file) and `row` (the index in it).
        settings: views and image size to expect.
        rejects: where bad rows go.

    Raises:
        TooManyBadRows: as `Rejects.add`.
    """
    samples = []
    for row in rows:
        try:
            samples.append(
                decode_row(
                    row,
                    str(row["path"]),
                    int(row["row"]),
                    views=settings.views,
                    image_size=settings.image_size,
                )
            )
        except BadRow as error:
            rejects.add(error)
    return samples
