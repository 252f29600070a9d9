"""What a stage gets: the device, the time it has, and the report that it writes as it goes."""

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


class Report:
    """A JSON file that holds, at every moment, all that a stage has found.

    `content` has the keys `stage`, `status` ("running", "ok", "failed", ...), `facts` (by name), `tables` (lists of
    rows, by name), `failures` and `notes` (texts). Threads may share a report.
    """

    def __init__(self, path: Path, stage: str, **head: object):
        self.path, self.lock = path, threading.RLock()
        self.content: dict[str, Any] = {"stage": stage, "status": "running", **head}
        self.content |= {"facts": {}, "tables": {}, "failures": [], "notes": []}
        self.write()

    def write(self) -> None:
        with self.lock:
            write_json(self.path, self.content)

    def row(self, table: str, row: dict[str, object]) -> None:
        with self.lock:
            self.content["tables"].setdefault(table, []).append(row)
            self.write()

    def fact(self, **facts: object) -> None:
        with self.lock:
            self.content["facts"] |= facts
            self.write()

    def note(self, text: str) -> None:
        self._say("notes", text)

    def fail(self, text: str) -> None:
        self._say("failures", text)

    def _say(self, kind: str, text: str) -> None:
        print(f"{kind}: {text}", flush=True)
        with self.lock:
            self.content[kind].append(text)
            self.write()

    def finish(self) -> None:
        with self.lock:
            self.content["status"] = "failed" if self.content["failures"] else "ok"
            self.write()


def write_json(path: Path, content: object) -> None:
    """The file is there completely, or as it was before.

    It does not use `detrx.atomic`: reports are also written where detrx cannot be imported.
    """
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)


@dataclass
class Context:
    """
    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        tiny: sizes at which figures mean nothing.
        deadline: on the clock of `time.monotonic`.
        scratch: a folder for files that nobody needs afterwards.
    """

    device: str
    tiny: bool
    deadline: float
    scratch: Path
    report: Report

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def in_time(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        """The items, as long as there is time for another one; those left out are noted."""
        items, longest = list(items), 0.0
        for place, item in enumerate(items):
            if self.left() < longest + 1:
                self.report.note(f"out of time: {len(items) - place} of {len(items)} {what} are missing")
                return
            start = time.monotonic()
            yield item
            longest = max(longest, time.monotonic() - start)
