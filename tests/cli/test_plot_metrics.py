import json

import numpy as np
import pytest
from PIL import Image

from detrx.cli import plot_metrics


def write_run(folder, scale=1.0, evaluated=True):
    folder.mkdir()
    lines = [
        {"iteration": i, "total_loss": scale * 9 / (i + 1), "loss_class": scale / (i + 1), "lr": 1e-3}
        for i in range(0, 100, 5)
    ]
    if evaluated:
        lines.append({"iteration": 99, "bbox/AP": 50.0 / scale, "bbox/AP50": 80.0, "bbox/AP75": float("nan")})
    (folder / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def panels(path):
    """Fraction of coloured (not grey) pixels in each quarter of the picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    coloured = pixels.max(axis=-1) - pixels.min(axis=-1) > 40
    h, w = coloured.shape
    return [coloured[y : y + h // 2, x : x + w // 2].mean() for y in (0, h // 2) for x in (0, w // 2)]


def test_one_run(tmp_path):
    run = write_run(tmp_path / "run")
    plot_metrics.main([str(run)])
    assert all(fraction > 1e-4 for fraction in panels(run / "metrics.png"))


def test_panel_without_data_is_empty(tmp_path):
    plot_metrics.main([str(write_run(tmp_path / "run", evaluated=False))])
    total, kinds, precision, rate = panels(tmp_path / "run" / "metrics.png")
    assert precision == 0
    assert min(total, kinds, rate) > 1e-4


def test_what_methods_log_has_panels_of_its_own(tmp_path):
    run = write_run(tmp_path / "run")
    plain = tmp_path / "plain.png"
    plot_metrics.main([str(run), "--output", str(plain)])
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    for line in lines:
        line |= {"moe/decoder_max_over_mean": 2.0, "moe/decoder_effective_experts": 5.5, "routing/passing_0": 20.0}
    (run / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    plot_metrics.main([str(run)])
    (width, height), extended = Image.open(plain).size, Image.open(run / "metrics.png").size
    assert extended == (width, 2 * height)  # four rows instead of two
    pixels = np.asarray(Image.open(run / "metrics.png").convert("RGB")).astype(int)
    coloured = pixels.max(axis=-1) - pixels.min(axis=-1) > 40
    h, w = coloured.shape[0] // 4, coloured.shape[1] // 2
    fractions = [coloured[y * h : (y + 1) * h, x * w : (x + 1) * w].mean() for y in (2, 3) for x in (0, 1)]
    assert min(fractions[:3]) > 1e-4 and fractions[3] == 0


def test_runs_are_overlaid_in_their_own_colours(tmp_path):
    runs = [str(write_run(tmp_path / name, scale)) for name, scale in (("a", 1.0), ("b", 3.0))]
    output = tmp_path / "new" / "both.png"
    plot_metrics.main([*runs, "--names", "one", "two", "--output", str(output), "--smooth", "3", "--title", "both"])
    pixels = np.asarray(Image.open(output).convert("RGB"))
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (pixels == colour).all(axis=-1).sum() > 200


def test_clear_errors(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: .*metrics\.json does not exist"):
        plot_metrics.main([str(tmp_path)])
    (tmp_path / "metrics.json").write_text("hello\n{}\n")
    with pytest.raises(SystemExit, match=r"error: .*metrics\.json, line 1"):
        plot_metrics.main([str(tmp_path)])
    with pytest.raises(SystemExit):
        plot_metrics.main([str(tmp_path), "--names", "a", "b"])
    assert "one name per run" in capsys.readouterr().err
    assert not (tmp_path / "metrics.png").exists()
