"""Checkpoints of more queries than the model has: refused, or the first queries are taken if the setting says so."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detrx import model_zoo
from detrx.checkpoint import CheckpointError
from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.engine import ModelEMA
from detrx.modeling import DetectionTransformer
from detrx.projects.h_detr import HybridBranch
from detrx.projects.qr_detr import QueryRouting
from tests.modeling.small import make_model
from tests.projects.contract import DETECTORS, switch_on

MANY, FEW = 12, 10


def detector(name: str, num_queries: int) -> DetectionTransformer:
    return make_model(*DETECTORS[name], num_queries)


def saved(folder: Path, model: DetectionTransformer, **entries) -> str:
    torch.save({"model": model.state_dict(), **entries}, folder / "many.pth")
    return str(folder / "many.pth")


ROWS = {
    "detr": ["pos.weight"],
    "conditional_detr": ["pos.weight"],
    "dab_detr": ["centres", "sizes"],
    "dn_detr": ["centres", "sizes"],
    "deformable_detr": ["content.weight", "pos.weight"],
    "dino": ["query_embed.weight"],
    "align_detr": ["query_embed.weight"],
}


@pytest.mark.parametrize("name", ROWS)
def test_the_first_queries_are_taken_when_asked(name: str, tmp_path: Path):
    many, few = detector(name, MANY), detector(name, FEW)
    path = saved(tmp_path, many)
    with pytest.raises(CheckpointError, match=r"12 queries instead of 10: train\.fewer_queries=True takes the first"):
        AtomicCheckpointer(few).load(path, strict=True)
    AtomicCheckpointer(few).load(path, strict=True, fewer_queries=True)
    for key, found in few.state_dict().items():
        expected = many.state_dict()[key]
        cut = key.removeprefix("query_source.") in ROWS[name]
        assert torch.equal(found, expected[:FEW] if cut else expected), key
        assert cut == (found.shape != expected.shape)


@pytest.mark.parametrize("name", ["deformable_detr_two_stage", "deformable_detr_plus_plus"])
def test_two_stage_detectors_without_learned_content_take_fewer_proposals_as_they_are(name: str, tmp_path: Path):
    AtomicCheckpointer(detector(name, FEW)).load(saved(tmp_path, detector(name, MANY)), strict=True)


@torch.no_grad()
def test_patterns_of_the_first_queries(tmp_path: Path):
    """Their weights are consecutive rows of one layer: those of the first queries are as before."""
    many, few = (detector("pattern_queries", number).eval() for number in (MANY, FEW))
    path = saved(tmp_path, many)
    with pytest.raises(CheckpointError, match="12 queries instead of 10"):
        AtomicCheckpointer(few).load(path, strict=True)
    AtomicCheckpointer(few).load(path, strict=True, fewer_queries=True)
    images = torch.randn(2, 3, 64, 96)
    memories = [each.encoder(each.tokenizer(each.neck(each.backbone(images)), None)) for each in (many, few)]
    content = many.query_source.content(memories[0])
    torch.testing.assert_close(few.query_source.content(memories[1]), content[:, :FEW])


def test_other_differences_are_still_errors(tmp_path: Path):
    """The rows of other numbers of patterns are not those of the same queries."""
    many, few = detector("pattern_queries", MANY), detector("pattern_queries", FEW)
    few.query_source.content = many.query_source.content.__class__(FEW, 64, 4, num_patterns=4)
    with pytest.raises(CheckpointError, match="is from another model") as error:
        AtomicCheckpointer(few).load(saved(tmp_path, many), strict=True, fewer_queries=True)
    assert "queries instead of" not in str(error.value)
    with pytest.raises(CheckpointError, match="is from another model"):
        AtomicCheckpointer(detector("dino", MANY)).load(
            saved(tmp_path, detector("dino", FEW)), strict=True, fewer_queries=True
        )


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile])
def test_with_routers_branches_and_averages(wrap: Callable, tmp_path: Path):
    """QueryRouting has nothing per query; the queries of a branch are counted for themselves; EMA weights are cut."""
    many, few = (
        switch_on(detector("deformable_detr", number), HybridBranch(number + 20, copies=2), QueryRouting())
        for number in (MANY, FEW)
    )
    ema = ModelEMA(many, 0.9)
    for parameter in ema.model.parameters():
        parameter.add_(1)
    path = saved(tmp_path, many, ema=ema.state_dict())
    with pytest.raises(CheckpointError, match="12 queries instead of 10, 32 queries instead of 30"):
        AtomicCheckpointer(wrap(few)).load(path, strict=True)
    for prefer_ema, source in ((False, many), (True, ema.model)):
        checkpointer = AtomicCheckpointer(wrap(few), prefer_ema=prefer_ema)
        checkpointer.load(path, strict=True, fewer_queries=True)
        assert torch.equal(few.query_source.pos.weight, source.query_source.pos.weight[:FEW])
        assert torch.equal(few.methods[0].further.pos.weight, source.methods[0].further.pos.weight[: FEW + 20])
        assert torch.equal(few.decoder.layers[0].router.weight, source.decoder.layers[0].router.weight)


def test_fine_tuning_warns_with_the_name_of_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    many, few = detector("dab_detr", MANY), detector("dab_detr", FEW)
    path, own = saved(tmp_path, many), few.query_source.sizes.clone()
    with caplog.at_level(logging.WARNING):
        AtomicCheckpointer(few).load(path)
    assert "train.fewer_queries=True takes the first ones" in caplog.text
    assert torch.equal(few.query_source.sizes, own)
    AtomicCheckpointer(few).load(path, fewer_queries=True)
    assert torch.equal(few.query_source.sizes, many.query_source.sizes[:FEW])


def test_the_setting_of_the_tools(tmp_path: Path):
    name = "dino/dino_digits"
    model = model_zoo.get(name)
    path = saved(tmp_path, model)
    overrides = ["model.query_source.num_queries=25"]
    with pytest.raises(CheckpointError, match=r"50 queries instead of 25: train\.fewer_queries=True"):
        model_zoo.get(name, path, overrides=overrides)
    few = model_zoo.get(name, path, overrides=[*overrides, "train.fewer_queries=true"])
    assert torch.equal(few.query_source.query_embed.weight, model.query_source.query_embed.weight[:25])
