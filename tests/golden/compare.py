"""Compares a detector that has a fixture's weights with what the published implementation gave."""

import torch

from detrx.modeling import DetectionTransformer, Predictions, Supervision
from tests.golden.golden_fixture import Golden, assert_gradients, assert_near


def assert_predictions(predictions: dict[str, Predictions], expected: dict[str, torch.Tensor]) -> None:
    assert_near(predictions["main"].logits, expected["pred_logits"], 1e-4, "logits")
    assert_near(predictions["main"].boxes, expected["pred_boxes"], 1e-4, "boxes")
    for name, prefix in (
        ("instruction", "o2m"),
        ("ffn", "sep"),
        ("denoising_instruction", "dn/o2m"),
        ("denoising_ffn", "dn/sep"),
    ):
        if name in predictions:
            assert_near(predictions[name].logits, expected[f"{prefix}/pred_logits"], 1e-4, f"{name} logits")
            assert_near(predictions[name].boxes, expected[f"{prefix}/pred_boxes"], 1e-4, f"{name} boxes")
    if "encoder_instruction" in predictions and "enc_o2m/logits" in expected:
        assert_near(
            predictions["encoder_instruction"].logits[0], expected["enc_o2m/logits"], 1e-4, "o2m encoder logits"
        )
        assert_near(predictions["encoder_instruction"].boxes[0], expected["enc_o2m/boxes"], 1e-4, "o2m encoder boxes")
    if "hybrid" in predictions:
        assert_near(predictions["hybrid"].logits, expected["one2many/pred_logits"], 1e-4, "one-to-many logits")
        assert_near(predictions["hybrid"].boxes, expected["one2many/pred_boxes"], 1e-4, "one-to-many boxes")
    if "denoising" in predictions:
        assert_near(predictions["denoising"].logits, expected["dn/pred_logits"], 1e-4, "denoising logits")
        assert_near(predictions["denoising"].boxes, expected["dn/pred_boxes"], 1e-4, "denoising boxes")
    # DINO supervises the chosen tokens only; some runs store no predictions of the encoder.
    prefix = "enc_topk/pred_" if "enc_topk/pred_logits" in expected else "enc/"
    if "encoder" in predictions and f"{prefix}logits" in expected:
        assert_near(predictions["encoder"].logits[0], expected[f"{prefix}logits"], 1e-4, "encoder logits")
        assert_near(predictions["encoder"].boxes[0], expected[f"{prefix}boxes"], 1e-4, "encoder boxes")


@torch.no_grad()
def assert_inference(model: DetectionTransformer, golden: Golden) -> None:
    """Predictions of all layers, and detections."""
    model.eval()
    # The published code ignores padding at inference.
    model.mask_padding = False
    assert_predictions(model.decode(model.encode(model.preprocess(golden.batch()))), golden.below("eval/"))
    for index, result in enumerate(model(golden.batch())):
        found, expected = result["instances"], golden.below(f"eval/det/{index}/")
        assert_near(found.pred_boxes.tensor, expected["boxes"], 1e-4, "detected boxes")
        assert_near(found.scores, expected["scores"], 1e-4, "scores")
        assert torch.equal(found.pred_classes, expected["classes"])


def assert_training(model: DetectionTransformer, golden: Golden, run: str) -> None:
    """Predictions, matches and all losses of a training run, and the gradients where the fixture has them."""
    model.train()
    expected = golden.below(f"{run}/")
    ground_truth = next((kind for kind in ("empty", "none") if run.endswith(kind)), "normal")
    batch = golden.batch(ground_truth)
    seed = golden.sizes["dn_seed"] + (ground_truth != "normal")
    torch.manual_seed(seed)
    predictions, supervisions, _ = model.train_step(model.preprocess(batch), golden.targets(ground_truth))
    if f"{run}/pred_logits" in golden.expected:
        assert_predictions(predictions, expected)
    assert_matches(model, predictions, supervisions, golden, run, ground_truth)

    torch.manual_seed(seed)
    losses = model(batch)
    named = {name.removeprefix("loss/") for name in expected if name.startswith("loss/")}
    # Where denoising is off, the published code returns losses of 0 for it.
    absent = named - losses.keys()
    assert losses.keys() <= named
    assert all("_dn" in name and expected[f"loss/{name}"] == 0 for name in absent), absent
    for name, value in losses.items():
        assert_near(value, expected[f"loss/{name}"].reshape(()), 1e-4, name)
    total = sum(losses.values())
    assert_near(total, expected["loss_total"].reshape(()), 1e-4, "total loss")
    if run in golden.meta["grad_l2_norms"]:
        total.backward()
        assert_gradients(golden, model, run)


def assert_matches(
    model: DetectionTransformer,
    predictions: dict[str, Predictions],
    supervisions: list[Supervision],
    golden: Golden,
    run: str,
    ground_truth: str,
) -> None:
    """Matched pairs of the main group, the encoder and the one-to-many queries, in every layer and image."""
    targets = golden.targets(ground_truth)
    assignments = model.criterion.assign(predictions, targets, supervisions)
    for supervision, pairs in zip(supervisions, assignments, strict=True):
        num_layers = len(predictions[supervision.group].logits)
        for index, layer in enumerate(supervision.numbers(num_layers)):
            aux = "final" if layer == num_layers - 1 else f"aux_{layer}"
            tag = {
                "main": aux,
                "encoder": "enc",
                "hybrid": f"one2many_{aux}",
                "instruction": f"group_{layer}",
                "ffn": f"sep_{layer}",
                "encoder_instruction": "enc_o2m",
            }.get(supervision.group)
            if tag is None:
                continue
            for image in range(len(targets.counts)):
                here = (pairs.layer == index) & (pairs.image == image)
                found = set(zip(pairs.query[here].tolist(), pairs.truth[here].tolist(), strict=True))
                match = golden.below(f"{run}/match/{tag}/{image}/")
                # One-to-many matching numbers the boxes through all repetitions.
                truth = match["tgt"] % targets.counts[image] if targets.counts[image] else match["tgt"]
                stored = set(zip(match["src"].tolist(), truth.tolist(), strict=True))
                assert found == stored, f"matches of {tag}, image {image}"
