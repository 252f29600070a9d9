"""DETR, Conditional DETR and DAB-DETR of Hugging Face transformers against ours, from converted weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from detrx import model_zoo
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.layers import inverse_sigmoid
from detrx.modeling import DetectionTransformer, TimmBackbone
from tests.golden.golden_fixture import assert_near
from tests.parity.huggingface import (
    BACKBONE,
    BACKBONE_CHANNELS,
    LOSS_NAMES,
    NUM_CLASSES,
    Batch,
    backbone_config,
    converted,
    random_batch,
    randomise,
    without_normalisation,
)

transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers")

WIDTH, HEADS, FFN, QUERIES, ENCODER_LAYERS, DECODER_LAYERS = 64, 4, 96, 12, 2, 3
VARIANTS = {
    "detr": ("Detr", {"d_model": WIDTH}),
    "conditional_detr": ("ConditionalDetr", {"d_model": WIDTH}),
    "dab_detr": ("DabDetr", {"hidden_size": WIDTH}),
    "dab_detr_patterns": ("DabDetr", {"hidden_size": WIDTH, "num_patterns": 2}),
}


def build_reference(variant: str) -> nn.Module:
    name, extra = VARIANTS[variant]
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone_config([4]),
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        num_queries=QUERIES,
        num_labels=NUM_CLASSES,
        dropout=0.0,
        **extra,
    )
    return randomise(getattr(transformers, f"{name}ForObjectDetection")(config))


def build_ours(variant: str) -> DetectionTransformer:
    name = variant.removesuffix("_patterns")
    cfg = without_normalisation(model_zoo.get_config(f"{name}/{name}_r50_50ep.py").model)
    cfg.backbone = L(TimmBackbone)(name=BACKBONE, out_features=["res5"], frozen_batch_norm=True)
    cfg.neck.in_channels = [BACKBONE_CHANNELS["res5"]]
    cfg.tokenizer.embed_dim, cfg.tokenizer.position_embedding.num_feats = WIDTH, WIDTH // 2
    cfg.encoder.num_layers, cfg.decoder.num_layers = ENCODER_LAYERS, DECODER_LAYERS
    cfg.encoder.layer.self_attn.num_heads = HEADS
    cfg.encoder.layer.ffn.hidden_dim, cfg.encoder.layer.dropout = FFN, 0.0
    cfg.decoder.heads.num_classes, cfg.query_source.num_queries = NUM_CLASSES, QUERIES
    cfg.decoder.inverse_sigmoid_eps = 1e-5
    if variant == "dab_detr_patterns":
        cfg.query_source.num_patterns = 2
    return instantiate(cfg)


def all_layers(reference: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all decoder layers of a transformers model, (T, B, N, K) and (T, B, N, 4).

    DETR and Conditional DETR would give them with `auxiliary_loss`, but for another network: there, transformers also
    normalises what one layer hands to the next.
    """
    states: list[Tensor] = []
    decoder = reference.model.decoder
    hooks = [
        layer.register_forward_hook(lambda *args: states.append(args[2][0] if isinstance(args[2], tuple) else args[2]))
        for layer in decoder.layers
    ]
    inputs = batch.for_transformers()
    outputs = reference.model(inputs["pixel_values"], inputs["pixel_mask"])
    for hook in hooks:
        hook.remove()
    normalised = decoder.layernorm(torch.stack(states))
    boxes = reference.bbox_predictor(normalised)
    if (points := getattr(outputs, "reference_points", None)) is not None:
        points = points if points.ndim == 4 else points.transpose(0, 1)
        boxes = boxes + nn.functional.pad(inverse_sigmoid(points, 1e-5), (0, 4 - points.shape[-1]))
    head = getattr(reference, "class_labels_classifier", None) or reference.class_embed
    return head(normalised), boxes.sigmoid()


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    reference = build_reference(request.param)
    return reference, converted(reference, build_ours(request.param), tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_predictions(models):
    reference, ours = models
    batch = random_batch()
    logits, boxes = all_layers(reference.eval(), batch)
    last = reference(**batch.for_transformers())
    torch.testing.assert_close((logits[-1], boxes[-1]), (last.logits, last.pred_boxes))
    found = ours.eval().predict(batch.padded, batch.padding_mask)["main"]
    assert logits.std() > 0.1 and boxes.std() > 0.01  # the comparison could fail
    assert_near(found.logits, logits, 1e-4, "logits")
    assert_near(found.boxes, boxes, 1e-4, "boxes")


def test_losses(models):
    """Those of all layers, by transformers' loss function, with our weights."""
    reference, ours = models
    batch = random_batch()
    logits, boxes = all_layers(reference.train(), batch)
    config = copy.deepcopy(reference.config)
    config.auxiliary_loss = True
    labels = batch.for_transformers()["labels"]
    _, expected, _ = reference.loss_function(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)
    weights = {loss.name: loss.weight for loss in ours.criterion.supervisions[0].losses}
    found = ours.train()(batch.for_detrx())
    compared = 0
    for name, value in expected.items():
        kind = name.rstrip("0123456789").rstrip("_")
        if kind in LOSS_NAMES:
            our_name = name.replace(kind, LOSS_NAMES[kind])
            assert_near(found[our_name], value * weights[LOSS_NAMES[kind]], 1e-4, our_name)
            compared += 1
    assert compared == len(found) == 3 * DECODER_LAYERS
