"""A fault to plant into a source: a text, and what is put in its place."""

from dataclasses import dataclass


class MutantError(Exception):
    """A fault that no longer fits the sources, or tests that do not run."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        what: is wrong then.
        file: in csrc.
        before: a text that occurs once in the file.
        after: what takes its place.
        reason: why no test can find the fault; empty where they must.
    """

    what: str
    file: str
    before: str
    after: str
    reason: str = ""

    @classmethod
    def without(
        cls, what: str, file: str, removed: str, *, after: str = "", before: str = "", reason: str = ""
    ) -> "Mutant":
        """Without a text between two others, of which one may be empty."""
        return cls(what, file, after + removed + before, after + before, reason)

    @property
    def test(self) -> str:
        """The tests that are to find it."""
        return f"tests/ops/test_{self.file.split('/')[0]}_cuda.py"

    def apply(self, text: str) -> str:
        """`text`, the contents of the file, with the fault. Raises MutantError where it does not fit."""
        count = text.count(self.before)
        if count != 1:
            times = "does not occur" if count == 0 else f"occurs {count} times"
            raise MutantError(f"{self.what!r}: the text to replace {times} in {self.file}:\n{self.before}")
        return text.replace(self.before, self.after)
