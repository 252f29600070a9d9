"""Commands of READMEs, run in this process in seconds: on a few small images, with thin models and few iterations.

Configs and overrides are read as a user's command reads them; `tiny_configs` then changes what makes them large.
Weights that a command loads and that another command of the README trains are made, untrained, from the config of that
command. Files that no command of the README writes do not exist.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import pickle
import re
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from detrx import config_zoo
from detrx.analysis import study_runs
from detrx.analysis.study import Study, load_study
from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.config_zoo import read_config
from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances
from detrx.d2.engine import default_argument_parser
from detrx.data.digits import DigitsSpec, prepare
from detrx.engine import config as engine_config
from detrx.engine import load_config, run_job, setup
from detrx.engine.renamed import rename_targets
from detrx.engine.trained import build_model
from tests.docs.readme_weights import ROOT, Source, trained_by, weights_in
from tests.docs.tiny_configs import SIDE, description, shrink_model, shrunk

DEFAULT_CONFIG = "deformable_detr/deformable_detr_digits"
"""Of what a command does not say the config of."""
FEW = {"size": [SIDE, SIDE], "rounds": 1, "num": 1, "images": 1, "cost_images": 1, "training_batch": 1, "jobs": 1}
"""Arguments of the tools that say how much is done, and what they become; others are left as they are."""


class Stale(AssertionError):
    """A command that cannot be run as it is written."""


class _Parsed(Exception):
    pass


def _stop(args: argparse.Namespace) -> None:
    raise _Parsed


class Workspace:
    """Folders in which commands run as in the root of the repository, one for each README, and what has been run there.

    Args:
        folder: empty; gets a folder for each README, with links to those of the repository and what its commands write.
        patch: undone after the last command.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder, self.patch = folder, patch
        self.registered: list[str] = []
        self.files: dict[str, bytes] = {}
        self.done: set[str] = set()
        self.ready: dict[tuple[str, ...], DictConfig] = {}  # read already, and wanted again next
        self.places: dict[tuple[str, ...], Path] = {}
        self.sources: dict[str, Source] = {}
        self.images = prepare(
            folder / "tiny", DigitsSpec(canvas=SIDE, digit_size=(12, 24), num_train=4, num_val=1), progress=False
        )
        patch.setattr(engine_config, "read_config", self.read_config)
        patch.setattr(engine_config, "rename_targets", lambda cfg: None)  # done once, by `self.read_config`
        patch.setattr(config_zoo, "name_of", functools.cache(config_zoo.name_of))
        patch.setattr(setup, "setup_logger", lambda *args, **kwargs: None)
        patch.setattr(AtomicCheckpointer, "load", self.weights_on_demand(AtomicCheckpointer.load))
        patch.setattr(study_runs, "run_process", self.in_this_process)

    def close(self) -> None:
        self.patch.undo()
        swap("load_config", self.load_config, load_config, "detrx")
        swap("read_config", self.read_small_config, read_config, "detrx.projects")
        for name in self.registered:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def enter(self, commands: tuple[str, ...]) -> None:
        """Go to the folder of the README that has these commands."""
        if commands not in self.places:
            place = self.places[commands] = self.folder / f"readme{len(self.places)}"
            place.mkdir()
            for linked in ("benchmarks", "configs", "projects", "tools"):
                (place / linked).symlink_to(ROOT / linked)
        self.patch.chdir(self.places[commands])

    def run(self, command: str, beside: Sequence[str] = ()) -> None:
        """Run a command; its figures are not looked at.

        Args:
            beside: all commands of the README, which write what this one may read.

        Raises:
            Stale: it fails; the message says why.
        """
        self.enter(tuple(beside))
        name, *arguments = shlex.split(command)
        # Studies measure what they have trained; trainings must not begin with their own result.
        others = [each for each in (*beside, command) if each != command or name == "tools/study.py"]
        self.sources = {path: source for each in others for path, source in trained_by(each).items()}
        match = re.fullmatch(r"(tools|benchmarks)/(\w+)\.py", name)
        if match is None or not (ROOT / name).is_file():
            raise Stale(f"{name} is no tool or benchmark of the repository")
        run = self.benchmark if match[1] == "benchmarks" else self.tool
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = run(match[2], arguments)
        except SystemExit as error:
            code = error.code
        except Exception as error:
            raise Stale("".join(traceback.format_exception(error, limit=-4))) from error
        if code:
            raise Stale(f"{printed.getvalue()[-2000:]}\n{code if isinstance(code, str) else f'exit status {code}'}")

    def benchmark(self, name: str, arguments: list[str]) -> None:
        """A script of benchmarks/, up to where it has read its arguments; tests/benchmarks runs the rest."""
        folder = ROOT / "benchmarks"
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(_Parsed):
            parse = argparse.ArgumentParser.parse_args
            patch.setattr(argparse.ArgumentParser, "parse_args", lambda *args: _stop(parse(*args)))
            patch.syspath_prepend(folder)
            patch.setattr(sys, "argv", [name, *arguments])
            runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")

    def tool(self, name: str, arguments: list[str]) -> int | None:
        tool = import_module(f"detrx.cli.{name}")
        self.read_small()
        run = {"lazyconfig_train_net": self.train, "study": self.study}.get(name, self.call)
        return run(tool, arguments)

    def read_config(self, path: str) -> DictConfig:
        """`read_config`, which executes each file once; with the names of today."""
        if path not in self.files:
            cfg = read_config(path)
            rename_targets(cfg)
            self.files[path] = pickle.dumps(cfg)
        return pickle.loads(self.files[path])

    def read_small(self) -> None:
        """Let all modules that are imported by now read small configs, of trainings and of teachers."""
        swap("load_config", load_config, self.load_config, "detrx")
        swap("read_config", read_config, self.read_small_config, "detrx.projects")

    def load_config(self, path: str, overrides: list[str]) -> DictConfig:
        if (cfg := self.ready.pop((path, *overrides), None)) is not None:
            return cfg
        cfg = load_config(path, overrides)
        self.check_files(cfg)
        shrunk(cfg)
        self.read_small()  # in projects that this config has imported
        classes = cfg.model.decoder.heads.num_classes
        for part in ("train", "test"):
            self.stand_in(cfg.dataloader[part].dataset.names, part, classes)
        return cfg

    def check_files(self, cfg: DictConfig) -> None:
        """Raise Stale if a config reads weights that no command of the README writes."""
        for file in weights_in(OmegaConf.to_container(cfg)):
            if not Path(file).exists() and str(Path(file)) not in self.sources:
                raise Stale(f"no command of the README writes {file}")

    def read_small_config(self, path: str) -> DictConfig:
        cfg = self.read_config(path)
        shrink_model(cfg.model)
        return cfg

    def stand_in(self, dataset: str, part: str, classes: int) -> None:
        """Let the name of a dataset be that of a few images with digits, called classes of a dataset of so many."""
        is_lvis = dataset.startswith("lvis")
        tiny = f"tiny_{'lvis' if is_lvis else 'coco'}_{part}_{classes}"
        if tiny not in self.registered:
            split = {"train": "train", "test": "val"}[part]
            content = json.loads((self.images / "annotations" / f"{split}.json").read_text())
            content["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)]
            for annotation in content["annotations"]:
                annotation["category_id"] = annotation["category_id"] % classes + 1
            if is_lvis:
                for image in content["images"]:
                    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
                for category in content["categories"]:
                    category["frequency"] = "f"
            file = self.folder / f"{tiny}.json"
            file.write_text(json.dumps(content))
            register_coco_instances(tiny, {}, str(file), str(self.images / split))
            self.registered.append(tiny)
        self.patch.setitem(DatasetCatalog.data, dataset, lambda: DatasetCatalog.get(tiny))
        self.patch.setitem(MetadataCatalog.data, dataset, MetadataCatalog.get(tiny))

    def train(self, tool: ModuleType, arguments: list[str]) -> int:
        """tools/lazyconfig_train_net.py, in one process; nothing is done where the same has been done before, because
        configs that differ in what is made small, such as the backbone, have become the same."""
        args = default_argument_parser().parse_args(arguments)
        args.num_gpus = args.num_machines = 1
        cfg = self.load_config(args.config_file, args.opts)
        what = description(cfg, [tool.__name__, args.eval_only, args.resume, bool(cfg.train.init_checkpoint)])
        if what in self.done:
            return 0
        self.done.add(what)
        self.ready[(args.config_file, *args.opts)] = cfg
        with pytest.MonkeyPatch.context() as patch:  # files that take a third of the time
            patch.setattr(tool, "write_config", lambda cfg, path: None)
            patch.setattr(AtomicCheckpointer, "save", lambda self, name, **extra: None)
            return run_job(tool.run, args)

    def study(self, tool: ModuleType, arguments: list[str]) -> None:
        """tools/study.py: every variant and preparation is read, the last variant is trained with one seed.
        The costs of the first study only are measured."""
        args = tool.parse_args(arguments)
        study = load_study(args.study)
        for variant in (*tool.select(study, args.variants), *(each.variant for each in study.prepare)):
            self.check_files(load_config(variant.config, list(variant.overrides)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tool, "load_study", lambda path: last_run(study))
            if "costs of a study" in self.done:
                patch.setattr(tool, "cost_of", lambda *args: None)
                patch.setattr(AtomicCheckpointer, "save", lambda self, name, **extra: None)
            self.call(tool, arguments, variants=None, seeds=None)
        self.done.add("costs of a study")

    def call(self, tool: ModuleType, arguments: list[str], **changes: Any) -> None:
        """Any other tool, which has `parse_args` and `main`, on little."""
        parse = tool.parse_args

        def parse_few(argv: list[str] | None = None) -> argparse.Namespace:
            args = few(parse(argv))
            vars(args).update(changes)
            if getattr(args, "dataset", None):
                cfg = self.load_config(getattr(args, "config_file", None) or DEFAULT_CONFIG, [])
                self.stand_in(args.dataset, "test", cfg.model.decoder.heads.num_classes)
            for run in getattr(args, "runs", []):
                self.results_on_demand(run)
            if getattr(args, "results", None):
                self.results_on_demand(args.results.parent.parent)
            return args

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tool, "parse_args", parse_few)
            if hasattr(tool, "load_study"):
                read = tool.load_study
                patch.setattr(tool, "load_study", lambda path: last_run(read(path)))
            tool.main(arguments)

    def results_on_demand(self, folder: Path) -> None:
        """Let there be metrics and detections of a training that a command of the README runs."""
        if str(folder / "model_final.pth") not in self.sources:
            raise Stale(f"no command of the README has the output {folder}")
        if (folder / "metrics.json").exists():
            return
        made = self.folder / "results"
        if not made.exists():
            config = ["--config-file", DEFAULT_CONFIG, f"train.output_dir={made}"]
            train_net = import_module("detrx.cli.lazyconfig_train_net")
            run_job(train_net.run, default_argument_parser().parse_args(config))
        shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pth", "last_checkpoint"))

    def weights_on_demand(self, load: Callable) -> Callable:
        """`AtomicCheckpointer.load` for which there is what commands of the README train."""

        def load_made(checkpointer: AtomicCheckpointer, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
            if path and not Path(path).exists() and (source := self.sources.get(str(Path(path)))) is not None:
                config, overrides = source
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                torch.save({"model": build_model(self.load_config(config, list(overrides)), "cpu").state_dict()}, path)
            return load(checkpointer, path, *args, **kwargs)

        return load_made

    def in_this_process(self, command: Sequence[str], **options: Any) -> int:
        """`run_process`, for the trainings of studies."""
        assert tuple(command[: len(study_runs.TRAIN)]) == study_runs.TRAIN
        train_net = import_module("detrx.cli.lazyconfig_train_net")
        return run_job(train_net.run, default_argument_parser().parse_args(command[len(study_runs.TRAIN) :]))


def swap(name: str, before: Callable, after: Callable, package: str) -> None:
    """Replace a function by another in all modules of a package that have it by this name."""
    for module in [module for key, module in sys.modules.items() if key.startswith(package)]:
        if getattr(module, name, None) == before:
            setattr(module, name, after)


def few(args: argparse.Namespace) -> argparse.Namespace:
    """Arguments of a tool with the numbers of `FEW`, where they ask for anything at all."""
    for name, value in FEW.items():
        given = getattr(args, name, None)
        if isinstance(given, list) and given and isinstance(given[0], list):
            setattr(args, name, [value])
        elif given:
            setattr(args, name, value)
    return args


def last_run(study: Study) -> Study:
    return replace(study, variants=study.variants[-1:], seeds=study.seeds[:1], prepare=(), analyses=())
