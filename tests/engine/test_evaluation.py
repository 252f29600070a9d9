from omegaconf import OmegaConf

from detrx.d2.config import LazyCall as L
from detrx.d2.evaluation import DatasetEvaluator
from detrx.engine import build_evaluator


class Writer(DatasetEvaluator):
    def __init__(self, name, output_dir="nowhere"):
        self.made_with = (name, output_dir)


class NoWriter(DatasetEvaluator):
    def __init__(self, name):
        self.made_with = (name,)


def made(evaluator):
    test = {"dataset": {"names": "digits"}}
    cfg = OmegaConf.create(
        {"train": {"output_dir": "out/a"}, "dataloader": {"test": test}}, flags={"allow_objects": True}
    )
    cfg.dataloader.evaluator = evaluator
    OmegaConf.set_struct(cfg, True)
    build_evaluator(cfg)
    built = build_evaluator(cfg)  # as in every evaluation of a training
    return built.made_with if isinstance(built, DatasetEvaluator) else [each.made_with for each in built]


def test_files_go_to_the_folder_of_the_run_unless_the_config_says_where():
    name = "${..test.dataset.names}"
    assert made(L(Writer)(name=name)) == ("digits", "out/a/inference")
    assert made(L(Writer)(name=name, output_dir="elsewhere")) == ("digits", "elsewhere")
    assert made(L(Writer)(name=name, output_dir=None)) == ("digits", None)
    assert made(L(NoWriter)(name=name)) == ("digits",)
    folders = made([L(Writer)(name="a"), L(NoWriter)(name="b")])
    assert folders == [("a", "out/a/inference"), ("b",)]
