#!/usr/bin/env python3
"""Where the CPU time of a training step goes: the parts of a detector, forward and backward, and what comes with them.

The steps are those of a config's own training, data included, in this process. A part inside of another one, such as
the heads of the decoder, does not count for it. The time of the backward pass is measured as a whole, and divided among
the parts as torch's profiler finds it, which slows the steps that it watches.

    python benchmarks/step_parts.py deformable_detr/deformable_detr_digits
"""

import argparse
import bisect
import collections
import contextlib
import functools
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from harness import machine, print_table, write_json
from torch.profiler import ProfilerActivity, profile, record_function

from detrx.d2.config import instantiate
from detrx.engine import ModelEMA, build_optimizer, load_config
from detrx.engine.host_memory import keep_freed_memory

BACKWARD, OTHER = "backward", "rest of the model"
_MARK = "part: "
_WARM_UP, _WATCHED = 5, 5


class Clock:
    """CPU milliseconds of this process by part; a part inside of another one does not count for it."""

    def __init__(self) -> None:
        self.times: collections.Counter[str] = collections.Counter()
        self._open: list[str] = []
        self._last = 0.0

    def _tick(self) -> None:
        now = time.process_time()
        if self._open:
            self.times[self._open[-1]] += 1e3 * (now - self._last)
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._tick()
        self._open.append(name)
        try:
            with record_function(_MARK + name):
                yield
        finally:
            self._tick()
            self._open.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count the calls of a method of an object or a class as a part."""
        function = getattr(owner, method)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, timed)


class Steps:
    """The training of a config, step by step."""

    def __init__(self, config: str, overrides: Sequence[str], clock: Clock):
        cfg = load_config(config, [*overrides, "train.device=cpu", "dataloader.train.num_workers=0"])
        torch.manual_seed(0)
        self.model = instantiate(cfg.model).train()
        self.model.prepare_training()
        self.optimizer = build_optimizer(cfg.optimizer, self.model)
        self.batches = iter(instantiate(cfg.dataloader.train))
        self.max_norm = cfg.train.clip_grad.max_norm if cfg.train.clip_grad.enabled else None
        self.ema = ModelEMA(self.model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
        self.clock = clock
        for name in ("backbone", "neck", "tokenizer", "encoder", "decoder"):
            clock.watch(getattr(self.model, name), "forward", name)
        clock.watch(self.model.query_source, "groups", "query source")
        clock.watch(self.model.decoder.heads, "forward", "heads")
        clock.watch(self.model.criterion, "assign", "matching")
        clock.watch(type(self.model.criterion), "__call__", "losses")

    def __call__(self, number: int) -> None:
        for _ in range(number):
            with self.clock.part("data"):
                batch = next(self.batches)
            with self.clock.part(OTHER):
                loss = torch.stack(list(self.model(batch).values())).sum()
            with self.clock.part(BACKWARD):
                self.optimizer.zero_grad()
                loss.backward()
            with self.clock.part("clipping of gradients"):
                if self.max_norm is not None:
                    parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
                    torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
            with self.clock.part("optimizer"):
                self.optimizer.step()
            with self.clock.part("EMA"):
                if self.ema is not None:
                    self.ema.update(self.model)


def backward_by_part(events: Sequence[Any]) -> dict[str, float]:
    """Microseconds of the backward pass for each part: that in which the function ran forward; "" for others, such as
    the accumulation of gradients. `events` are those of `torch.profiler`."""
    spans = sorted((e.time_range.start, e.time_range.end, e.name[len(_MARK) :]) for e in events if _is_part(e))
    starts = [start for start, _, _ in spans]

    def part_at(moment: float) -> str:
        before = reversed(spans[: bisect.bisect_right(starts, moment)])
        return next((name for _, end, name in before if end >= moment), "")

    origin: dict[int, str] = {}
    for event in sorted((e for e in events if e.sequence_nr >= 0), key=lambda e: e.time_range.start):
        origin.setdefault(event.sequence_nr, part_at(event.time_range.start))
    times: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function"):
            times[origin.get(event.sequence_nr, "")] += event.time_range.elapsed_us()
    return dict(times)


def _is_part(event: Any) -> bool:
    return event.name.startswith(_MARK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="name of the model zoo, or file")
    parser.add_argument("--rounds", type=int, default=50, help="steps that are timed (default: 50)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()

    clock = Clock()
    steps = Steps(args.config, args.set, clock)
    steps(_WARM_UP)
    clock.times.clear()
    steps(args.rounds)
    forward = {name: value / args.rounds for name, value in clock.times.items()}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps(_WATCHED)
    shares = backward_by_part(list(profiler.events()))
    backward = forward.pop(BACKWARD)
    scale = backward / sum(shares.values())
    rows = [
        {"part": name, "forward, ms": value, "backward, ms": scale * shares.pop(name, 0.0)}
        for name, value in sorted(forward.items(), key=lambda item: -item[1])
    ]
    rows.append({"part": "rest of the backward pass", "forward, ms": 0.0, "backward, ms": scale * sum(shares.values())})
    rows.append({"part": "all", "forward, ms": sum(forward.values()), "backward, ms": backward})
    print_table(rows)
    command = shlex.join(["benchmarks/step_parts.py", *sys.argv[1:]])
    print(
        "written:", write_json("step_parts_cpu_float32", {"machine": machine("cpu"), "command": command, "rows": rows})
    )


if __name__ == "__main__":
    main()
