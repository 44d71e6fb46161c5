"""What has been done for a data set folder, so that a second run does only the rest."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cnx.data.prepare.pair import OutputError


class Journal:
    """A file of JSON objects, one a line, which grows as work is done. Half a line, left by a kill, is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """The whole lines, oldest first; none where there is no file."""
        if not self.path.exists():
            return []
        whole, _, half = self.path.read_bytes().rpartition(b"\n")
        if half:  # cut it off, or the next line would be lost with it
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)
        entries = []
        for line in whole.splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:  # a machine that went down may leave zeros; what they stood for is done again
                continue
        return entries

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add lines. Raises OutputError if they cannot be written."""
        content = "".join(json.dumps(entry) + "\n" for entry in entries)
        try:
            with self.path.open("ab") as file:
                file.write(content.encode())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from None
