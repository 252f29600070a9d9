"""Backbones, on small models with random weights, against the libraries whose weights they take."""

import pytest
import torch
from torch import nn

from detrx.checkpoint.backbones import split_backbone
from detrx.modeling import TimmBackbone

RESNET = {"layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]}
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_width": 4, "stem_type": "deep"}
SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4, "drop_path_rate": 0.0}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
ALL = ("res2", "res3", "res4", "res5")


def swin(**options) -> TimmBackbone:
    return TimmBackbone("swin_tiny_patch4_window7_224", model_args=SWIN, **options)


def randomise(model: nn.Module) -> nn.Module:
    """Random weights and statistics for which a wrong assignment shows."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.1)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.eval()


def take(backbone: TimmBackbone, weights: dict) -> TimmBackbone:
    """Load weights that must all find their place and fill it."""
    backbone.load_state_dict(
        {**backbone.own_names(weights), **{k: v for k, v in backbone.state_dict().items() if k.endswith("_tracked")}}
    )
    return backbone.eval()


@torch.no_grad()
def assert_same_maps(backbone: TimmBackbone, expected: list, images: torch.Tensor) -> None:
    maps = list(backbone(images).values())
    assert len(maps) == len(expected)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "dilated"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
@torch.no_grad()
def test_resnets_are_those_of_torchvision(name: str, dilated: bool):
    import torchvision

    source = getattr(torchvision.models, name)(replace_stride_with_dilation=[False, False, dilated]).eval()
    source.to(memory_format=torch.channels_last)  # the same algorithms, so that rounding is the same
    args = {"output_stride": 16} if dilated else {}
    weights, _ = split_backbone({f"backbone.0.body.{k}": v for k, v in source.state_dict().items() if k[:2] != "fc"})
    backbone = take(TimmBackbone(name, ALL, model_args=args), weights)
    assert backbone.out_strides == (4, 8, 16, 16 if dilated else 32)
    images = torch.randn(1, 3, 70, 96).contiguous(memory_format=torch.channels_last)
    x = source.maxpool(source.relu(source.bn1(source.conv1(images))))
    expected = [x := layer(x) for layer in (source.layer1, source.layer2, source.layer3, source.layer4)]
    assert_same_maps(backbone, expected, images)
    frozen = TimmBackbone(name, ALL, frozen_batch_norm=True, model_args=args)
    frozen.load_state_dict(frozen.own_names(weights))
    assert_same_maps(frozen, expected, images)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@torch.no_grad()
def test_resnets_of_transformers(layer_type: str):
    transformers = pytest.importorskip("transformers")
    expansion = 4 if layer_type == "bottleneck" else 1
    config = transformers.ResNetConfig(
        hidden_sizes=[c * expansion for c in RESNET["channels"]],
        depths=RESNET["layers"],
        layer_type=layer_type,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    source = randomise(transformers.ResNetBackbone(config))
    weights = {f"model.backbone.conv_encoder.model.{k}": v for k, v in source.state_dict().items()}
    backbone = TimmBackbone("resnet50" if expansion == 4 else "resnet18", ALL, model_args=RESNET)
    images = torch.randn(2, 3, 64, 48)
    assert_same_maps(take(backbone, weights), source(images).feature_maps, images)


@pytest.mark.parametrize("as_saved", [False, True])
@torch.no_grad()
def test_swin_of_transformers_at_any_size(as_saved: bool, tmp_path):
    """Neither patches, windows nor the merging of 2x2 fit into the image."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        embed_dim=SWIN["embed_dim"],
        depths=SWIN["depths"],
        num_heads=SWIN["num_heads"],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    source = randomise(transformers.SwinBackbone(config))
    weights = source.state_dict()
    if as_saved:
        from safetensors.torch import load_file

        source.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
    weights = {key: value for key, value in weights.items() if "layernorm." not in key}  # of the classifier
    images = torch.randn(1, 3, 101, 150)
    assert_same_maps(take(swin(norm_features=True), weights), source(images).feature_maps, images)


@torch.no_grad()
def test_swin_is_that_of_timm_where_windows_fit():
    import timm

    backbone = randomise(swin(out_features=ALL))
    source = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, img_size=128, always_partition=True, **SWIN
    ).eval()
    source.load_state_dict(backbone.body.state_dict())
    images = torch.randn(1, 3, 128, 128)
    assert_same_maps(backbone, [m.permute(0, 3, 1, 2) for m in source(images)], images)


@torch.no_grad()
def test_backbones_of_detectron2():
    d2 = pytest.importorskip("detectron2.modeling.backbone")
    stages = d2.ResNet.make_default_stages(50, norm="FrozenBN", stride_in_1x1=False)
    source = randomise(d2.ResNet(d2.BasicStem(norm="FrozenBN"), stages, out_features=list(ALL)))
    images = torch.randn(1, 3, 64, 96)
    weights = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    assert_same_maps(take(TimmBackbone("resnet50", ALL), weights), list(source(images).values()), images)

    arguments = {key: SWIN[key] for key in ("embed_dim", "depths", "num_heads", "window_size")}
    source = randomise(d2.SwinTransformer(**arguments, out_indices=(1, 2, 3)))
    images = torch.randn(1, 3, 101, 150)
    weights = {f"backbone.{k}": v for k, v in source.state_dict().items()}
    assert_same_maps(take(swin(norm_features=True), weights), list(source(images).values()), images)


@pytest.mark.parametrize(
    ("name", "args", "strides"),
    [
        ("resnet18", SMALL, (4, 8, 16, 32)),
        ("resnet18", {**SMALL, "output_stride": 16}, (4, 8, 16, 16)),
        ("swin_tiny_patch4_window7_224", SWIN, (4, 8, 16, 32)),
        ("convnext_tiny", CONVNEXT, (4, 8, 16, 32)),
        ("tf_efficientnet_lite0", {}, (4, 8, 16, 32)),
    ],
)
@torch.no_grad()
def test_stages_are_named_by_stride(name: str, args: dict, strides: tuple):
    backbone = TimmBackbone(name, ALL, model_args=args).eval()
    features = backbone(torch.randn(1, 3, 100, 130))
    assert tuple(features) == backbone.out_features == ALL and backbone.out_strides == strides
    for (key, value), channels, stride in zip(features.items(), backbone.out_channels, strides, strict=True):
        if "resnet" in name or "swin" in name:  # others do without padding, or pad as TensorFlow does
            assert value.shape == (1, channels, -(-100 // stride), -(-130 // stride)), key
    (only,) = TimmBackbone(name, ["res4"], model_args=args)(torch.randn(1, 3, 64, 64)).items()
    assert only[0] == "res4" and only[1].shape[1] == backbone.out_channels[2]


@pytest.mark.parametrize(
    ("name", "args", "frozen"),
    [
        ("resnet18", SMALL, {"conv1", "layer1"}),
        ("swin_tiny_patch4_window7_224", SWIN, {"patch_embed", "layers_0"}),
        ("convnext_tiny", CONVNEXT, {"stem_0", "stem_1", "stages_0"}),
    ],
)
def test_frozen_stages(name: str, args: dict, frozen: set):
    backbone = TimmBackbone(name, freeze_at=2, model_args=args)
    stopped = {key.split(".")[1] for key, p in backbone.named_parameters() if not p.requires_grad}
    trained = {key.split(".")[1] for key, p in backbone.named_parameters() if p.requires_grad}
    assert stopped == frozen and trained and not trained & frozen
    first = TimmBackbone(name, freeze_at=1, model_args=args)
    stopped = {key.split(".")[1] for key, p in first.named_parameters() if not p.requires_grad}
    assert stopped == frozen - {"layer1", "layers_0", "stages_0"}


def test_embeddings_count_as_stem():
    args = {"depth": 3, "embed_dim": 16, "num_heads": 2}
    backbone = TimmBackbone("vit_tiny_patch16_224", ["res4"], freeze_at=1, model_args=args)
    stopped = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert stopped == {f"body.model.{key}" for key in ("cls_token", "pos_embed", "patch_embed.proj.weight",
                                                       "patch_embed.proj.bias")}  # fmt: skip


def test_batch_norm_that_does_not_train():
    frozen = TimmBackbone("resnet18", frozen_batch_norm=True, model_args=SMALL)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    partly = TimmBackbone("resnet18", freeze_at=2, model_args=SMALL).train()
    before = {name: buffer.clone() for name, buffer in partly.named_buffers()}
    partly(torch.randn(2, 3, 64, 64))
    changed = {name.split(".")[1] for name, buffer in partly.named_buffers() if not torch.equal(before[name], buffer)}
    assert changed == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("name", "args", "part"),
    [
        ("resnet18", SMALL, "layer2"),
        ("swin_tiny_patch4_window7_224", SWIN, "layers_1.blocks.0"),
        ("convnext_tiny", CONVNEXT, "stages_1.blocks.0"),
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 16, "num_heads": 2}, "model.blocks.0"),
    ],
)
def test_activation_checkpointing_gives_the_same_gradients(name: str, args: dict, part: str):
    images = torch.randn(1, 3, 64, 64)
    options = {"out_features": ["res6" if "vit" in name else "res5"], "frozen_batch_norm": True, "model_args": args}
    plain = TimmBackbone(name, **options)
    saving = TimmBackbone(name, activation_checkpointing=True, **options)
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.body.get_submodule(part).register_forward_pre_hook(lambda *_: calls.append(1))
    for backbone in (plain, saving):
        next(iter(backbone(images).values())).square().mean().backward()
    assert len(calls) == 2
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, key=key: f"{key}: {text}")


def test_activation_checkpointing_that_is_not_there():
    with pytest.raises(ValueError, match="'hrnet_w18_small' has no activation checkpointing"):
        TimmBackbone("hrnet_w18_small", activation_checkpointing=True)


def test_file_of_any_naming(tmp_path):
    """The ImageNet classifier of timm, and a detector's checkpoint in Detectron2's naming."""
    import timm

    classifier = timm.create_model("resnet18", **RESNET)
    path = tmp_path / "classifier.pth"
    torch.save({"state_dict": classifier.state_dict()}, path)
    ours = TimmBackbone("resnet18", checkpoint_path=str(path), model_args=RESNET).state_dict()
    assert all(torch.equal(value, classifier.state_dict()[key.removeprefix("body.")]) for key, value in ours.items())

    detector = {"transformer.level_embeds": torch.zeros(4, 8)}
    for key, value in classifier.state_dict().items():
        if key.startswith("fc") or key.endswith("num_batches_tracked"):
            continue
        key = key if key.startswith("layer") else f"stem.{key}"
        for ours_, theirs in (("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm")):
            key = key.replace(ours_, theirs)
        for index in (1, 2, 3, 4):
            key = key.replace(f"bn{index}", f"conv{index}.norm").replace(f"layer{index}", f"RES{index + 1}")
        detector["backbone." + key.lower()] = value
    path = tmp_path / "detector.pth"
    torch.save({"model": detector}, path)
    loaded = TimmBackbone("resnet18", checkpoint_path=str(path), frozen_batch_norm=True, model_args=RESNET)
    torch.testing.assert_close(loaded.state_dict(), {k: v for k, v in ours.items() if not k.endswith("_tracked")})


def test_original_swin_downsamples_at_the_end_of_a_stage(tmp_path):
    backbone = randomise(swin(norm_features=True))
    original = {"head.weight": torch.zeros(10, 128)}
    for key, value in backbone.state_dict().items():
        key = key.removeprefix("body.").replace("layers_", "layers.")
        if "downsample" in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}", f"layers.{stage - 1}")
        original[key.replace("norms.res", "norm")] = value
    original = {f"norm{int(k[4]) - 2}{k[5:]}" if k[:4] == "norm" else k: v for k, v in original.items()}
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    path = tmp_path / "swin.pth"
    torch.save({"model": original}, path)
    loaded = swin(norm_features=True, checkpoint_path=str(path))
    torch.testing.assert_close(loaded.state_dict(), backbone.state_dict())
    torch.save({"model": {k: v for k, v in original.items() if not k.startswith("norm")}}, path)
    loaded = swin(norm_features=True, checkpoint_path=str(path))
    assert torch.equal(loaded.norms["res3"].weight, torch.ones(32))


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        TimmBackbone("resnet18", checkpoint_path=str(path), model_args=SMALL)
    torch.save({"model": nn.Linear(1, 1)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as a file of weights"):
        TimmBackbone("resnet18", checkpoint_path=str(path), model_args=SMALL)
    weights = TimmBackbone("resnet18", model_args=RESNET).body.state_dict()
    weights["layer2.0.conv1.weight"] = torch.zeros(1, 2)
    del weights["layer4.0.bn1.bias"]
    torch.save(weights, path)
    with pytest.raises(ValueError) as caught:
        TimmBackbone("resnet18", checkpoint_path=str(path), model_args=RESNET)
    assert "weights.pth does not hold the weights of timm model 'resnet18'" in str(caught.value)
    assert "layer4.0.bn1.bias is missing" in str(caught.value)
    assert "layer2.0.conv1.weight is (1, 2) instead of (16, 8, 3, 3)" in str(caught.value)


def test_pretrained_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"of timm model 'resnet18\.tv_in1k' could not be loaded.*checkpoint_path"):
        TimmBackbone("resnet18.tv_in1k", pretrained=True, model_args={"cache_dir": str(tmp_path)})


def test_errors():
    with pytest.raises(ValueError, match=r"\['res6'\] unknown, timm model 'resnet18' has \['stem', 'res2'"):
        TimmBackbone("resnet18", ("res3", "res6"), model_args=SMALL)
    with pytest.raises(ValueError, match=r"timm has no model 'resnet05'; similar ones: resnet"):
        TimmBackbone("resnet05")
    with pytest.raises(ValueError, match=r"'resnet18' gives no feature maps with model_args \{'depht': 3\}.*depht"):
        TimmBackbone("resnet18", model_args={"depht": 3})
    with pytest.raises(ValueError, match="exclude each other"):
        TimmBackbone("resnet18", pretrained=True, checkpoint_path="weights.pth")


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_batch_norm_is_batch_norm_in_evaluation(requires_grad: bool):
    from detrx.modeling.batch_norm import freeze_batch_norm

    norm = nn.BatchNorm2d(6)
    for tensor in norm.state_dict().values():
        if tensor.ndim:
            nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 6, 5, 4, requires_grad=requires_grad)
    frozen = freeze_batch_norm(nn.Sequential(norm))
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert frozen(x.half()).dtype == torch.half and not list(frozen.parameters())
