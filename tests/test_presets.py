"""Presets: known names, overrides that win, and the same from Python and the command line."""

import re
from pathlib import Path

import pytest
from models import PLAIN, make_teacher, save_teacher

from boot.callbacks import History
from boot.cli import main
from boot.config import DistillConfig
from boot.distiller import Distiller
from boot.errors import ConfigError
from boot.presets import PRESETS, preset_config

README = Path(__file__).resolve().parent.parent / "README.md"
ABLATION = README.parent / "docs" / "ablation.md"


def test_presets_are_valid_and_differ():
    configs = {name: preset_config(name) for name in PRESETS}
    assert set(configs) == {"fast", "default", "quality"}
    assert configs["default"] == DistillConfig()
    steps = [configs[name].max_train_steps for name in ("fast", "default", "quality")]
    assert steps == sorted(set(steps))
    for preset in PRESETS.values():
        assert len(preset.purpose) > 10 and len(preset.result) > 10


def test_overrides_win_and_guidance_follows_the_teacher():
    run = Distiller(make_teacher(), preset="quality", max_train_steps=3, train_batch_size=2)
    expected = preset_config("quality").replace(max_train_steps=3, train_batch_size=2)
    assert run.config.max_train_steps == 3
    assert run.config == Distiller(make_teacher(), expected).config
    assert run.config.correction == "distribution"
    assert run.config.guidance_scale == 1.5
    assert Distiller(make_teacher(PLAIN), preset="quality").config.guidance_scale == 1.0
    ranged = Distiller(make_teacher(), preset="quality", guidance_scale_max=3.0)
    assert ranged.config.correction == "distribution"


def test_bad_presets_are_refused():
    with pytest.raises(ConfigError, match=r"preset must be one of .*'quality'; got 'best'"):
        Distiller(make_teacher(), preset="best")
    with pytest.raises(ConfigError, match="config and preset exclude each other"):
        Distiller(make_teacher(), DistillConfig(), preset="fast")


def test_the_command_line_takes_a_preset(tmp_path, capsys, monkeypatch):
    teacher, seen = save_teacher(tmp_path / "teacher"), []

    def fit(distiller):
        seen.append(distiller.config)
        return History()

    monkeypatch.setattr(Distiller, "fit", fit)
    command = ["distill", str(teacher), "--output-dir", str(tmp_path / "out")]
    assert main([*command, "--preset", "quality", "--train-batch-size", "2"]) == 0
    assert seen[0].train_batch_size == 2
    assert seen[0].max_train_steps == preset_config("quality").max_train_steps
    assert main([*command, "--preset", "zzz"]) == 1
    assert "preset must be one of" in capsys.readouterr().err
    assert main([*command, "--preset", "fast", "--config", "x.json"]) == 2


def packed(text):
    """Text without its spaces and line breaks, which --help has its own way with."""
    return "".join(text.split())


def test_the_help_shows_what_each_preset_reached(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    shown = packed(capsys.readouterr().out)
    for name, preset in PRESETS.items():
        steps = preset_config(name).max_train_steps
        assert packed(f"{name}: {preset.purpose}, {steps} steps ({preset.result})") in shown


@pytest.mark.skipif(not README.is_file(), reason="needs the source tree")
def test_the_readme_has_the_same_results():
    for name, preset in PRESETS.items():
        row = f"| `{name}` | {preset_config(name).max_train_steps:,} | {preset.result} |"
        assert row in README.read_text(), f"README.md must have the row {row}"


@pytest.mark.skipif(not ABLATION.is_file(), reason="needs the source tree")
def test_the_results_are_those_of_the_measurements():
    text = ABLATION.read_text()
    rows = text[text.index("| digits |") :].splitlines()
    for name, preset in PRESETS.items():
        measured = [row.split("|") for row in rows if f"`--preset {name}`" in row]
        assert measured, f"docs/ablation.md must have a row of --preset {name}"
        assert all(f"{preset_config(name).max_train_steps:,} steps" in row[2] for row in measured)
        said = [float(number) for number in re.findall(r"\d\.\d\d", preset.result)]
        # The Fréchet distance, recall and class accuracy of one teacher after the other.
        found = [float(row[column]) for row in measured for column in (4, 5, 6)]
        assert said == pytest.approx(found, abs=0.006), name
