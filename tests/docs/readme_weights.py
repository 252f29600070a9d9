"""Files of weights that commands of READMEs write and read."""

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrx.analysis.study import Run, load_study
from detrx.cli.study import parse_args, select
from detrx.d2.engine import default_argument_parser

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ("checkpoint", "checkpoint_path", "init_checkpoint")
"""Keys of configs whose values are files of weights."""

Source = tuple[str, tuple[str, ...]]
"""Config and overrides of the training that writes a file."""


@functools.cache
def trained_by(command: str) -> dict[str, Source]:
    """The final weights that a command writes, by path; none if it is stale, which is said when it runs."""
    name, *arguments = shlex.split(command)
    with contextlib.suppress(SystemExit, ValueError, OSError), contextlib.redirect_stderr(io.StringIO()):
        if name == "tools/lazyconfig_train_net.py":
            args = default_argument_parser().parse_args(arguments)
            folders = [each.partition("=")[2] for each in args.opts if each.startswith("train.output_dir=")]
            if folders and not args.eval_only:
                return {str(Path(folders[-1]) / "model_final.pth"): (args.config_file, tuple(args.opts))}
        if name == "tools/study.py":
            args = parse_args(arguments)
            study = load_study(ROOT / args.study)
            variants = select(study, args.variants)
            runs = [Run(variant, seed, args.output) for variant in variants for seed in args.seeds or study.seeds]
            trainings = [*study.prepare, *runs]
            return {str(each.weights): (each.variant.config, tuple(each.overrides)) for each in trainings}
    return {}


def weights_in(node: Any) -> Iterator[str]:
    """Files of weights that a plain config names; not those of another machine."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if key in WEIGHTS and isinstance(value, str):
            if value and not re.search(r"://|\$\{", value):
                yield value
        else:
            yield from weights_in(value)
