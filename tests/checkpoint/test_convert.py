"""Conversion of whole checkpoints; that the weights are right is shown in tests/golden and tests/parity."""

import pytest
import torch
from torch import nn

from detrx import model_zoo
from detrx.checkpoint import CheckpointConversionError, CheckpointError, convert_checkpoint, detect_format
from detrx.checkpoint.checkpointer import AtomicCheckpointer
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.modeling import TimmBackbone
from tests.checkpoint import original_names
from tests.checkpoint.original_names import as_original

WIDTH = 32


def build(config: str, backbone=None) -> nn.Module:
    cfg = model_zoo.get_config(f"{config}.py").model
    cfg.backbone = backbone
    cfg.tokenizer.embed_dim, cfg.tokenizer.position_embedding.num_feats = WIDTH, WIDTH // 2
    cfg.encoder.num_layers, cfg.decoder.num_layers = 1, 2
    return instantiate(cfg)


@pytest.fixture(scope="module")
def refine():
    return build("deformable_detr/deformable_detr_refine_r50")


@pytest.fixture(scope="module")
def two_stage():
    return build("deformable_detr/deformable_detr_two_stage_r50")


def random_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "names", "settings"),
    [
        ("deformable_detr/deformable_detr_refine_r50", original_names.DEFORMABLE, {"eps": 1e-5}),
        ("deformable_detr/deformable_detr_two_stage_r50", original_names.DEFORMABLE, {"eps": 1e-5}),
        ("dino/dino_r50", original_names.DINO, {"temperature": 20, "offset": 0}),
        ("detr/detr_r50", original_names.DETR, {}),
        ("conditional_detr/conditional_detr_r50", original_names.CONDITIONAL_DETR, {"eps": 1e-5}),
        ("dab_detr/dab_detr_r50", original_names.DAB_DETR, {}),
        ("dn_detr/dn_detr_r50", original_names.DAB_DETR, {}),
    ],
)
def test_original_checkpoints(config, names, settings):
    model = build(config)
    weights = random_weights(model)
    source = as_original(weights, names)
    assert detect_format(source) == "original"
    converted, report = convert_checkpoint(source, model)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
    assert report.pieces.keys() == source.keys()
    assert len(report.notes) == len(settings)
    for name, value in settings.items():
        assert any(f"{name} = {value}, the model has" in note for note in report.notes)


def test_learned_content_of_two_groups_in_one_tensor():
    """H-DETR: the one-to-many queries are behind the main ones."""
    weights = random_weights(build("h_detr/h_deformable_detr_r50"))
    rest = dict(weights)
    content = [rest.pop(f"{owner}.query_embed.weight") for owner in ("query_source", "methods.0.further")]
    assert [len(each) for each in content] == [300, 1500]
    source = {**as_original(rest), "query_embed.weight": torch.cat(content)}
    converted, _ = convert_checkpoint(source, build("h_detr/h_deformable_detr_r50"))
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
    with pytest.raises(
        CheckpointConversionError, match=r"query_embed\.weight is \(1800, 32\), the model has \(300, 32\)"
    ):
        convert_checkpoint(source, build("deformable_detr/deformable_detr_plus_plus_r50"))


def test_shared_heads_are_listed_once_per_layer():
    model = build("deformable_detr/deformable_detr_r50")
    weights = random_weights(model)
    source = as_original(weights)
    for key in [key for key in source if "_embed.0." in key]:
        source[key.replace("_embed.0.", "_embed.1.")] = source[key].clone()
    converted, _ = convert_checkpoint(source, model)
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
    source["class_embed.1.bias"] += 1
    with pytest.raises(CheckpointConversionError, match=r"class_embed\.1\.bias differs from another key"):
        convert_checkpoint(source, model)


def test_every_problem_is_listed(refine):
    source = {
        "transformer.level_embeds": torch.zeros(4, 16),
        "class_embed.0.weight": torch.zeros(80, WIDTH),
        "transformer.decoder.class_embed.0.weight": torch.ones(80, WIDTH),
        "unheard.of": torch.zeros(1),
        "transformer.encoder.layers.7.norms.0.weight": torch.zeros(WIDTH),
    }
    with pytest.raises(CheckpointConversionError) as error:
        convert_checkpoint(source, refine, "detrex")
    problems = error.value.report.problems
    assert "unheard.of has no counterpart in the model" in problems
    assert "tokenizer.level_embed is (4, 16), the model has (4, 32)" in problems
    assert (
        "transformer.decoder.class_embed.0.weight differs from another key for decoder.heads.class_heads.0.weight"
        in problems
    )
    name = "encoder.layers.7.norm1.weight"
    assert f"transformer.encoder.layers.7.norms.0.weight would be {name}, not in the model" in problems
    assert "decoder.layers.0.norm3.weight is not in the checkpoint" in problems
    assert f"and {len(problems) - 10} more" in str(error.value)


def test_91_ids_become_80_classes(two_stage):
    weights = random_weights(two_stage)
    source = as_original(weights)
    heads = [key for key in source if key.startswith("class_embed.")]
    for key in heads:
        rows = torch.arange(91.0)
        source[key] = rows if key.endswith("bias") else rows[:, None].expand(91, WIDTH)
    converted, report = convert_checkpoint(source, two_stage)
    # Ids 12, 26, ... do not exist: class 11 has id 13, class 79 has id 90.
    classes = converted["decoder.heads.class_heads.1.bias"].tolist()
    assert len(classes) == 80 and classes[0] == 1 and classes[11] == 13 and classes[79] == 90
    assert converted["decoder.heads.class_heads.0.weight"][11].tolist() == [13] * WIDTH
    # The encoder's head means "an object" by its first output, which ranks the proposals.
    assert converted["query_source.class_head.bias"][:12].tolist() == [0, *range(2, 12), 13]
    assert any("query_source.class_head.bias" in note for note in report.notes)


def test_skip_leaves_out_what_it_names(two_stage):
    source = as_original(random_weights(two_stage))
    source["class_embed.0.bias"] = torch.zeros(17)
    source["label_enc.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointConversionError):
        convert_checkpoint(source, two_stage)
    converted, report = convert_checkpoint(source, two_stage, skip=[r".*\bclass_head.*", "label_enc.*"])
    left_out = set(two_stage.state_dict()) - set(converted)
    assert left_out == {name for name in two_stage.state_dict() if "class_head" in name}
    assert {"label_enc.weight", *left_out} <= set(report.skipped)
    assert "left out (as requested): label_enc.weight" in str(report)


def test_backbone_and_its_counts_of_batches():
    model = build("deformable_detr/deformable_detr_refine_r50", backbone=L(TimmBackbone)(name="test_resnet"))
    weights = {n: torch.rand_like(t) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    source = as_original(weights)
    counts = [key for key in source if key.endswith("num_batches_tracked")]
    assert counts
    converted, report = convert_checkpoint(source, model)
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
    assert list(report.ignored) == counts
    without, report = convert_checkpoint({key: source[key] for key in source if key not in counts}, model)
    assert without.keys() == weights.keys()
    assert len(report.kept) == len(counts)


def test_backbone_of_detectron2_in_a_detrex_checkpoint():
    backbone = L(TimmBackbone)(name="resnet50", frozen_batch_norm=True)
    model = build("deformable_detr/deformable_detr_refine_r50", backbone=backbone)
    source = {
        "backbone.stem.conv1.weight": torch.rand(64, 3, 7, 7),
        "backbone.res2.0.conv1.weight": torch.rand(64, 64, 1, 1),
        "backbone.res5.2.conv3.norm.running_mean": torch.rand(2048),
    }
    with pytest.raises(CheckpointConversionError) as error:  # it has no more than these
        convert_checkpoint(source, model, "detrex")
    assert {key: pieces[0].name for key, pieces in error.value.report.pieces.items()} == {
        "backbone.stem.conv1.weight": "backbone.body.conv1.weight",
        "backbone.res2.0.conv1.weight": "backbone.body.layer1.0.conv1.weight",
        "backbone.res5.2.conv3.norm.running_mean": "backbone.body.layer4.2.bn3.running_mean",
    }


def test_results_share_no_memory_and_have_the_types_of_the_model(refine):
    source = {name: tensor.half() for name, tensor in as_original(random_weights(refine)).items()}
    converted, _ = convert_checkpoint(source, refine)
    storages = {tensor.untyped_storage().data_ptr() for tensor in converted.values()}
    assert len(storages) == len(converted)
    assert all(tensor.dtype == torch.float32 for tensor in converted.values())


def test_unknown_formats(refine, tmp_path):
    with pytest.raises(CheckpointConversionError, match=r"has no known format.*first keys are a, b"):
        convert_checkpoint({"a": torch.zeros(1), "b": torch.zeros(1)}, refine)
    with pytest.raises(CheckpointConversionError, match=r"already has our names .*train\.init_checkpoint takes it"):
        convert_checkpoint(refine.state_dict(), refine)
    mmdetection = {"bbox_head.cls_branches.0.weight": torch.zeros(1)} | dict.fromkeys(
        (f"encoder.layers.0.self_attn.{name}.weight" for name in ("value_proj", "output_proj")), torch.zeros(1)
    )
    with pytest.raises(CheckpointConversionError, match="has the names of mmdetection, which cannot be converted"):
        convert_checkpoint(mmdetection, refine)
    del mmdetection["bbox_head.cls_branches.0.weight"]
    unknown = {**mmdetection, **{f"head.{index}": torch.zeros(1) for index in range(3)}}
    with pytest.raises(CheckpointConversionError, match="has no known format"):
        convert_checkpoint(unknown, refine)
    torch.save({"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"from another model.* It has the names of Detectron2"):
        AtomicCheckpointer(refine).load(str(tmp_path / "other.pth"))
    with pytest.raises(
        CheckpointConversionError, match="unknown format 'caffe', expected one of detrex, efficientnet, huggingface"
    ):
        convert_checkpoint({}, refine, "caffe")
