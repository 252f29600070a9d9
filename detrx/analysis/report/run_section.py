"""The head of the page and the section on the run: what was trained, how and where, and the main results."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from .charts import number
from .run_folder import RunFolder, short_name

_MACHINE = ("CPU", "GPU", "platform", "python", "torch", "detrx", "Detectron2 provider")
NOT_RECORDED = "not recorded"


def run_section(run: RunFolder, ap: dict[str, Any]) -> dict[str, Any]:
    """Title, lead, tiles and facts of the run; `ap` is the section on average precision, for its tiles."""
    name = Path(run.log.config_file).stem or run.path.resolve().name
    environment = dict(run.log.environment)
    facts = [
        ("Output folder", str(run.path)),
        ("Config file", run.log.config_file or NOT_RECORDED),
        ("Methods", ", ".join(run.methods) or ("none" if run.config else NOT_RECORDED)),
        ("Trained on", _names(run.get("dataloader.train.dataset.names"))),
        ("Evaluated on", ", ".join(run.test_datasets) or NOT_RECORDED),
        ("Begun", run.date or NOT_RECORDED),
        ("Machine", ", ".join(filter(None, (environment.get("CPU"), _gpu(environment)))) or NOT_RECORDED),
        ("Versions", _versions(environment)),
    ]
    iterations, planned = run.iterations, run.get("train.max_iter")
    unfinished = iterations is not None and isinstance(planned, int) and iterations < planned
    tiles = [(label, number(value), remark) for label, value, remark in ap["tiles"]]
    tiles.append(
        ("Iterations", number(iterations) if iterations else "–", f"of {number(planned)} planned" if unfinished else "")
    )
    tiles.append(("Duration", *_duration(run)))
    model = short_name(run.get("model")) if run.config else ""
    methods = " with " + ", ".join(run.methods) if run.methods else ""
    lead = f"{model}{methods}, evaluated on {', '.join(run.test_datasets) or 'nothing'}" if model else "Training run"
    return {
        "title": name,
        "lead": lead,
        "summary": {"tiles": tiles, "facts": facts},
        "command": run.command(),
        "environment": list(run.log.environment),
    }


def config_facts(run: RunFolder) -> dict[str, Any]:
    """The main settings of the config, and its full text."""
    main = next(
        (each for each in run.get("model.criterion.supervisions") or [] if each.get("group", "main") == "main"), None
    )
    facts = [
        ("Backbone", _with(run, "model.backbone", "name")),
        ("Encoder", _with(run, "model.encoder", "num_layers", "layers")),
        ("Queries", _with(run, "model.query_source", "num_queries", "queries")),
        ("Decoder", _with(run, "model.decoder", "num_layers", "layers")),
        ("Channels", _text(run.get("model.tokenizer.embed_dim"))),
        ("Classes", _text(run.get("model.decoder.heads.num_classes"))),
        ("Losses", ", ".join(_loss(each) for each in main.get("losses", [])) if isinstance(main, DictConfig) else ""),
        ("Methods", ", ".join(run.methods) or "none"),
        ("Optimizer", _with(run, "optimizer", "lr", "learning rate", "weight_decay", "weight decay")),
        ("Schedule", _schedule(run)),
        ("Batch size", _text(run.get("dataloader.train.total_batch_size"))),
        ("Accumulated batches", _text(run.get("train.accumulate"))),
        ("Iterations", _text(run.get("train.max_iter"))),
        ("Averaged weights", _switched(run, "train.ema", "decay")),
        ("Gradient clipping", _switched(run, "train.clip_grad", "max_norm")),
        ("Mixed precision", _switched(run, "train.amp", "dtype")),
        ("Seed", _text(run.get("train.seed"))),
        ("Device", _text(run.get("train.device"))),
    ]
    return {"facts": [(name, value) for name, value in facts if value], "text": run.config_text}


def _with(run: RunFolder, key: str, *rest: str) -> str:
    """Class of a node of the config, with some of its values: key and words in turn; a last key has no words."""
    node = run.get(key)
    if not isinstance(node, DictConfig):
        return ""
    parts = [short_name(node)]
    for name, words in zip(rest[::2], [*rest[1::2], ""], strict=False):
        value = run.get(f"{key}.{name}")
        if value is None:
            continue
        counted = words in ("layers", "queries")
        parts.append((f"{value} {words}" if value != 1 else "1 layer") if counted else f"{words} {value}".strip())
    return ", ".join(parts)


def _loss(node: DictConfig) -> str:
    weight = node.get("weight")
    return short_name(node) + ("" if weight is None else f" × {weight:g}")


def _schedule(run: RunFolder) -> str:
    inner = run.get("lr_multiplier.scheduler")
    return short_name(inner if isinstance(inner, DictConfig) else run.get("lr_multiplier") or "")


def _switched(run: RunFolder, key: str, detail: str) -> str:
    if run.get(f"{key}.enabled") is None:
        return ""
    return f"{detail.replace('_', ' ')} {run.get(f'{key}.{detail}')}" if run.get(f"{key}.enabled") else "off"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)


def _names(value: Any) -> str:
    return ", ".join(value) if isinstance(value, (list, ListConfig)) else str(value or NOT_RECORDED)


def _gpu(environment: dict[str, str]) -> str:
    gpu = environment.get("GPU", "")
    return "" if gpu.startswith("none") else gpu


def _versions(environment: dict[str, str]) -> str:
    parts = [
        f"{name} {environment[name].split(' (')[0]}" for name in ("detrx", "torch", "python") if name in environment
    ]
    provider = environment.get("Detectron2 provider")
    return ", ".join([*parts, *([f"Detectron2's API: {provider}"] if provider else [])]) or NOT_RECORDED


def _duration(run: RunFolder) -> tuple[str, str]:
    if run.seconds is None:
        return "–", ""
    seconds, exact = run.seconds
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        text = f"{hours} h {minutes} min"
    else:
        text = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return text, "" if exact else "sum of the logged times"
