"""The baselines of PaQ-DETR: what the "++" detectors are, and that they train and refine boxes."""

import pytest
import torch

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.layers import inverse_sigmoid
from detrx.modeling import DetectionTransformer, Queries, ReferencePosition
from tests.modeling.small import make_model
from tests.projects.contract import losses_of, make_batch

DAB, DN, DEFORMABLE = (f"paq_detr/baseline_{name}_digits.py" for name in ("dab_detr", "dn_detr", "deformable"))


def test_position_scaled_by_content():
    """From the second layer on; before the first one, there is no content yet."""
    position = ReferencePosition(embed_dim=8, scale_by_content=True)
    queries = Queries(content=torch.randn(2, 3, 8), pos=None, reference=torch.rand(2, 3, 4))
    first, second = (position(queries, layer, None).pos for layer in (0, 1))
    torch.testing.assert_close(first, position.mlp(position.embed(queries.reference)))
    torch.testing.assert_close(second, first * position.scale.mlp(queries.content))


def watch_positions(model: DetectionTransformer) -> list[Queries]:
    """The queries before every decoder layer, with their new positions."""
    seen = []
    model.decoder.position.register_forward_hook(lambda module, args, output: seen.append(output))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("name", [DAB, DN])
def test_anchors_are_boxes_that_every_layer_refines(name: str):
    """The anchors of the first layer are the best proposals; those of each further one the boxes before it."""
    model = make_model(name).eval()
    seen = watch_positions(model)
    images = model.preprocess(make_batch())
    memory = model.encode(images)
    main, encoder = model.query_source(memory)
    assert main.pos is None and main.content.unique(dim=0).shape == (1, 10, 64), "learned content, of each rank"
    chosen = encoder["encoder"].logits[0].amax(-1).topk(10, dim=1).indices
    proposals = encoder["encoder"].boxes[0].gather(1, chosen[..., None].expand(-1, -1, 4))
    predictions = model.decode(memory)["main"]
    torch.testing.assert_close(seen[0].reference, proposals)
    for layer in (1, 2):
        torch.testing.assert_close(seen[layer].reference, predictions.boxes[layer - 1])
        assert not torch.allclose(seen[layer].reference, seen[layer - 1].reference, atol=1e-4)
        assert not torch.allclose(seen[layer].pos, seen[layer - 1].pos, atol=1e-4)


@pytest.mark.parametrize("name", [DAB, DN, DEFORMABLE])
def test_look_forward_twice(name: str):
    """The boxes of a layer teach the box head of the layer before, and no earlier one."""
    model = make_model(name).train()
    boxes = []
    model.decoder.register_forward_hook(lambda module, args, output: boxes.append(output["main"].boxes))
    losses_of(model, make_batch())
    inverse_sigmoid(boxes[0][2]).sum().backward()
    taught = [
        any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in model.decoder.heads.box_heads
    ]
    assert taught == [False, True, True]


@pytest.mark.parametrize("name", [DAB, DN, DEFORMABLE])
def test_trains_every_parameter(name: str):
    model = make_model(name)
    for counts in ((3, 1), (0, 0)):
        model.zero_grad()
        losses = losses_of(model, make_batch(*counts))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert ("loss_class_dn" in losses) == (name == DN)


@pytest.mark.parametrize(
    ("detector", "class_weight"), [("deformable_detr", 2.0), ("dab_detr", 1.0), ("dn_detr", 1.0), ("dino", 2.0)]
)
def test_settings_of_the_baselines_on_coco(detector: str, class_weight: float):
    """What "++" stands for, and the weights of the losses."""
    cfg = model_zoo.get_config(model_zoo.baseline(f"paq_detr/paq_{detector}_r50")).model
    weights = {each.group: tuple(loss.weight for loss in each.losses) for each in cfg.criterion.supervisions}
    assert weights == dict.fromkeys(("main", "encoder"), (class_weight, 5.0, 2.0))
    assert cfg.query_source.content == "learned" and cfg.decoder.refine_boxes and cfg.decoder.look_forward_twice
    assert (cfg.tokenizer.num_levels, cfg.encoder.layer.ffn.hidden_dim, cfg.encoder.layer.dropout) == (4, 2048, 0.0)
    assert not cfg.decoder.heads.shared
    position = cfg.decoder.get("position")
    scaled = None if position is None else instantiate(position).scale is not None
    assert scaled == {"deformable_detr": None, "dino": False}.get(detector, True)
    kinds = {"dn_detr": ["GroupDenoising"], "dino": ["ContrastiveDenoising"]}
    assert [each["_target_"].__name__ for each in cfg.methods] == kinds.get(detector, [])


def test_denoising_of_dino_plus_plus():
    """300 denoising queries, whose class loss has half the weight of the others."""
    cfg = model_zoo.get_config("paq_detr/baseline_dino_r50.py").model
    (denoising,) = cfg.methods
    assert denoising.num_queries == 300 and [loss.weight for loss in denoising.losses] == [1.0, 5.0, 2.0]
    assert cfg.backbone.freeze_at == 0
