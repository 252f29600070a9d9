"""The teacher of a distillation: where it comes from, what it is kept out of, inheriting, resuming, and its errors."""

import copy
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from detrx import model_zoo
from detrx.checkpoint.checkpointer import CheckpointError
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.engine import ModelEMA
from detrx.modeling import DetectionTransformer
from detrx.projects.d3etr import Distillation
from detrx.projects.d3etr.teacher import Teacher, inherit
from tests.modeling.small import SMALL_BACKBONE, make_input, make_model
from tests.projects.contract import detector, distillation, losses_of, make_batch, switch_on

CONDITIONAL, DETR = "conditional_detr/conditional_detr_digits.py", "detr/detr_digits.py"


def small_config(name: str = CONDITIONAL) -> dict[str, DictConfig]:
    """That of `make_model`."""
    model = model_zoo.get_config(name).model
    model.backbone.model_args.update(SMALL_BACKBONE)
    model.neck.in_channels = [24]
    model.tokenizer.embed_dim = 64
    model.tokenizer.position_embedding.num_feats = 32
    model.query_source.num_queries = 10
    return {"model": model}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a model of `small_config`, and other ones as its average."""
    torch.manual_seed(1)
    model, average = make_model(CONDITIONAL), make_model(CONDITIONAL)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save({"model": model.state_dict(), "ema": {"model": average.state_dict(), "updates": 1}}, path)
    return str(path)


def student(checkpoint: str, **options: object) -> DetectionTransformer:
    return switch_on(detector("conditional_detr"), Distillation(small_config(), checkpoint, **options))


def step(model: DetectionTransformer, optimizer: torch.optim.Optimizer, batch: list[dict]) -> dict[str, float]:
    losses = losses_of(model, batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return {key: loss.item() for key, loss in losses.items()}


def test_teacher_has_the_averaged_weights_of_its_checkpoint(checkpoint: str):
    teacher = Teacher(small_config(), checkpoint)
    state = torch.random.get_rng_state()
    model = teacher.on(torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), state), "loading the teacher draws random numbers"
    expected = torch.load(checkpoint, weights_only=True)["ema"]["model"]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert not len(model.methods)
    assert teacher.on(torch.device("cpu")) is model, "the teacher is loaded twice"


def test_teacher_as_a_node_of_the_config():
    method = instantiate(L(Distillation)(teacher=small_config(), allow_untrained=True))
    assert method.teacher._model is None, "the teacher is built with the student"
    assert method.teacher.on(torch.device("cpu")).query_source.pos.weight.shape == (10, 64)


def test_teacher_is_never_trained_and_no_part_of_the_student(checkpoint: str):
    model, plain = student(checkpoint), detector("conditional_detr")
    assert model.state_dict().keys() - plain.state_dict().keys() == {"methods.1.inherited"}
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    model.eval()([make_input(64, 64)])
    method = model.methods[-1]
    assert method.teacher._model is None, "inference loads the teacher"
    ema = ModelEMA(model, decay=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = make_batch()
    step(model, optimizer, batch)
    teacher = method.teacher._model
    before = copy.deepcopy(teacher.state_dict())
    for _ in range(2):
        model.train()
        assert not any(module.training for module in teacher.modules())
        step(model, optimizer, batch)
        ema.update(model)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert copy.deepcopy(model).methods[-1].teacher is ema.model.methods[-1].teacher is method.teacher
    assert model.state_dict().keys() == ema.model.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    inside = {id(module) for module in model.modules()}
    assert not inside & {id(module) for module in teacher.modules()}


def test_encoder_and_decoder_are_inherited_once(checkpoint: str):
    model = student(checkpoint)
    neck = copy.deepcopy(model.neck.state_dict())
    batch = make_batch()
    losses_of(model, batch)
    teacher = model.methods[-1].teacher._model
    for part in ("encoder", "decoder"):
        expected = getattr(teacher, part).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in getattr(model, part).state_dict().items())
    assert all(torch.equal(value, neck[key]) for key, value in model.neck.state_dict().items())
    with torch.no_grad():
        model.decoder.layers[0].norm1.weight.add_(1)
    losses_of(model, batch)
    assert not torch.equal(model.decoder.layers[0].norm1.weight, teacher.decoder.layers[0].norm1.weight)


@pytest.mark.parametrize("matching", ["adaptive", "random"])
def test_resumed_training_has_the_same_next_loss(checkpoint: str, matching: str):
    model = student(checkpoint, matching=matching)
    batch = make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        step(model, optimizer, batch)
    saved, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = [step(model, optimizer, batch) for _ in range(2)]
    resumed = student(checkpoint, matching=matching)
    resumed.load_state_dict(saved)
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    optimizer.load_state_dict(state)
    assert [step(resumed, optimizer, batch) for _ in range(2)] == expected


def test_inheriting_from_other_sizes():
    def fewer_layers(cfg: DictConfig) -> None:
        cfg.decoder.num_layers = 2

    model = make_model(CONDITIONAL)
    with pytest.raises(
        ValueError, match=r"decoder from the teacher, .* tensors differ: decoder\.layers\.2\.\S+ \(not in the teacher"
    ):
        inherit(make_model(CONDITIONAL), make_model(CONDITIONAL, fewer_layers), ["decoder"])
    with pytest.raises(ValueError, match=r"'head' is not a part"):
        inherit(model, model, ["head"])
    wide = make_model(CONDITIONAL, lambda cfg: cfg.encoder.layer.ffn.update(hidden_dim=96))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"encoder\.layers\.0\.ffn\.\S+ \(\(96, 64\) there, \(256, 64\) here\)"
    ) as error:
        inherit(model, wide, ["encoder", "decoder"])
    hint = "Give the student's encoder and decoder the teacher's widths and number of layers, or leave them out of"
    assert hint in str(error.value) and "queries" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        (DETR, None, {"losses": ["prediction"], "auxiliary": None}, "must both have a softmax"),
        (CONDITIONAL, lambda cfg: cfg.decoder.heads.update(num_classes=7), {}, "predicts 10 classes, the teacher 7"),
        (
            CONDITIONAL,
            lambda cfg: cfg.encoder.layer.self_attn.update(num_heads=2),
            {},
            "4 heads .* and 2 in the teacher",
        ),
        (
            CONDITIONAL,
            lambda cfg: cfg.backbone.model_args.update(output_stride=16),
            {},
            r"sizes \[\(8, 12\)\], the teacher of \[\(4, 6\)\]",
        ),
        ("dab_detr/dab_detr_digits.py", None, {}, "queries cannot pass the student's decoder.*'reference': 4"),
        ("deformable_detr/deformable_detr_digits.py", None, {}, "layer 0 of the teacher is a DecoderLayer with Deform"),
    ],
)
def test_teachers_that_do_not_fit(name: str, change, options: dict, message: str):
    model = switch_on(detector("conditional_detr"), distillation(make_model(name, change), **options))
    with pytest.raises(ValueError, match=message):
        losses_of(model, make_batch())


def test_other_maps_and_heads_do_not_matter_to_predictions():
    def change(cfg: DictConfig) -> None:
        cfg.encoder.layer.self_attn.num_heads = 2
        cfg.backbone.model_args.output_stride = 16

    method = distillation(make_model(CONDITIONAL, change), losses=["prediction"])
    model = switch_on(detector("conditional_detr"), method)
    assert "loss_distill_class" in losses_of(model, make_batch())


def test_a_narrower_teacher_needs_no_fixed_matching():
    cfg = small_config()
    cfg["model"].tokenizer.embed_dim = 32
    cfg["model"].tokenizer.position_embedding.num_feats = 16
    method = Distillation(cfg, "", losses=["prediction"], inherit=[], allow_untrained=True)
    model = switch_on(detector("conditional_detr"), method)
    with pytest.raises(ValueError, match=r"'content': 32.*instead of .*'content': 64.*auxiliary=None"):
        losses_of(model, make_batch())
    method.auxiliary = None
    assert "loss_distill_class" in losses_of(model, make_batch())


def test_teachers_that_cannot_be_loaded(tmp_path: Path, checkpoint: str):
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="needs the weights of its teacher: set `checkpoint`"):
        Teacher(small_config(), "").on(cpu)
    with pytest.raises(CheckpointError, match=r"teacher of the distillation: checkpoint .*nowhere.pth does not exist"):
        Teacher(small_config(), str(tmp_path / "nowhere.pth")).on(cpu)
    with pytest.raises(CheckpointError, match="is from another model"):
        Teacher(DETR, checkpoint).on(cpu)
    with pytest.raises(FileNotFoundError, match=r"similar ones: .*conditional_detr_digits"):
        Teacher("conditional_detr/conditional_detr_digit.py", checkpoint).on(cpu)
    folder = model_zoo.config_root() / DETR
    assert Teacher(str(folder), "", allow_untrained=True).on(cpu).query_source.num_queries == 50


def test_missing_weights_stop_the_first_step_but_not_inference():
    model = switch_on(detector("conditional_detr"), Distillation(CONDITIONAL))
    assert "instances" in model.eval()([make_input(64, 64)])[0]
    with pytest.raises(ValueError, match="needs the weights of its teacher"):
        losses_of(model, make_batch())


def test_mixed_precision_reaches_the_teacher():
    """Its forward pass is in the student's precision; predictions are float32."""
    model = switch_on(detector("conditional_detr"), distillation())
    teacher = model.methods[-1].teacher
    images = model.preprocess(make_batch())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lesson = teacher.teach(model, images, ["self_attn", "cross_attn"])
    assert {call.q.dtype for calls in lesson.attention.values() for call in calls} == {torch.bfloat16}
    teacher.forget()
    exact = teacher.teach(model, images, ["cross_attn"])
    assert lesson.predictions.logits.dtype == torch.float32
    for low, high in zip(lesson.attention["cross_attn"], exact.attention["cross_attn"], strict=True):
        assert low.weights().dtype == torch.float32
        torch.testing.assert_close(low.weights(), high.weights(), atol=0.05, rtol=0.2)
