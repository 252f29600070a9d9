"""The order in which the trainings of a study run: preparations before what uses them, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detrx.errors import UserError

from .study import Preparation, Run, Study, Training, Variant
from .study_runs import finished_result, has_begun, is_finished


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        uses: every training, in the order in which they begin, and the preparations that it waits for.
    """

    uses: Mapping[Training, tuple[Preparation, ...]]

    @property
    def runs(self) -> list[Run]:
        return [each for each in self.uses if isinstance(each, Run)]

    def states(self) -> list[dict[str, str]]:
        """A row for each training: what it is, its folder, and whether it is finished, has begun, or waits."""
        return [
            {
                "training": "preparation" if isinstance(each, Preparation) else str(each),
                "state": "finished" if is_finished(each) else "begun" if has_begun(each) else "to train",
                "uses": ", ".join(map(str, used)) or "-",
                "folder": str(each.folder),
            }
            for each, used in self.uses.items()
        ]


def plan(study: Study, variants: Sequence[Variant], seeds: Sequence[int], output: Path, kept: Path | None) -> Plan:
    """The runs of these variants, seed by seed, so that an unfinished study has results of every variant, and before
    them the preparations that unfinished runs use, and those that these use.

    Raises:
        UserError: the results of a run, or of a preparation that a run has used, are those of other settings.
    """
    runs = [Run(variant, seed, output, kept) for seed in seeds for variant in variants]
    preparations = [replace(each, kept=kept) for each in study.prepare]
    for each in _used(preparations, runs, follow=lambda _: True):
        finished_result(each)
    unfinished = [each for each in runs if not is_finished(each)]
    needed = _used(preparations, unfinished, follow=lambda each: not is_finished(each))
    return Plan({each: tuple(other for other in needed if each.uses(other)) for each in (*needed, *runs)})


def _used(
    preparations: Sequence[Preparation], users: Sequence[Training], follow: Callable[[Preparation], bool]
) -> list[Preparation]:
    """The preparations that any of the users needs, and those that the ones to follow need, in their order."""
    found: list[Preparation] = []
    waiting = list(users)
    while waiting:
        user = waiting.pop()
        new = [each for each in preparations if user.uses(each) and each not in found]
        found += new
        waiting += [each for each in new if follow(each)]
    return [each for each in preparations if each in found]


def train_all(
    uses: Mapping[Training, Sequence[Training]], train: Callable[[Training], Any], jobs: int
) -> dict[Training, Any]:
    """Results of all trainings, `jobs` at a time. Where one fails, what uses it is left out, and the others go on.

    Args:
        uses: every training, and those that must be finished before it begins.

    Raises:
        UserError: one or more have failed, when the others have ended; the message has all errors.
    """
    waiting, running = list(uses), dict[Future, Training]()
    results: dict[Training, Any] = {}
    errors: dict[Training, str] = {}
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(waiting), unit="run") as bar:
        while waiting or running:
            for each in list(waiting):
                if failed := [used for used in uses[each] if used in errors]:
                    errors[each] = f"{each} needs {failed[0]}"
                    waiting.remove(each)
                    bar.update()
                elif len(running) < jobs and all(used in results for used in uses[each]):
                    running[pool.submit(train, each)] = each
                    waiting.remove(each)
            for done in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                each = running.pop(done)
                try:
                    results[each] = done.result()
                except UserError as error:
                    errors[each] = str(error)
                bar.update()
    if errors:
        raise UserError(f"{len(errors)} of {len(uses)} trainings failed: {'; '.join(errors.values())}")
    return results
