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
    return build_evaluator(cfg).made_with  # as in every evaluation of a training


def test_files_go_to_the_folder_of_the_run_unless_the_config_says_where():
    name = "${..test.dataset.names}"
    assert made(L(Writer)(name=name)) == ("digits", "out/a/inference")
    assert made(L(Writer)(name=name, output_dir="elsewhere")) == ("digits", "elsewhere")
    assert made(L(Writer)(name=name, output_dir=None)) == ("digits", None)
    assert made(L(NoWriter)(name=name)) == ("digits",)
