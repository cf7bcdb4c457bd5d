"""Flags of the command line: every choice can be made, and errors say what would help."""

from __future__ import annotations

from test_cli import QUICK, fails, folders, keep_messages_as_they_are, run

from boot import flags
from boot.config import DistillConfig

__all__ = ["folders", "keep_messages_as_they_are"]  # fixtures


def test_every_choice_of_a_setting_can_be_made_by_its_flag():
    """'none' is one of a correction, and means None where it is not a choice."""
    parser = flags.Parser()
    flags.add_config_flags(parser)
    for option in DistillConfig.options():
        for choice in option.choices:
            values = parser.parse_args([flags.flag_of(option.name), choice])
            assert vars(values) == {option.name: choice}


def test_hints_are_flags_of_the_command_that_was_given(folders, capsys):
    text = fails(capsys, "evaluate", folders / "student", "--teacher", "x", "--num-image", 3)
    assert text == "unknown argument --num-image (did you mean '--num-images'?)"
    assert "did you mean" not in fails(capsys, "info", folders / "student", "--c-flor", 3)


def test_what_a_folder_holds_instead(folders, tmp_path, capsys):
    text = fails(capsys, "distill", folders / "student", "--output-dir", tmp_path / "out", *QUICK)
    assert "holds a student of boot (boot.json)" in text
    (tmp_path / "distill_config.json").write_text("{}")
    for command in ("info", "sample"):
        assert "holds a run that is not finished" in fails(capsys, command, tmp_path)
    text = fails(capsys, "info", "google/ddpm-cifar10-32")
    assert "Hugging Face hub, download it into a folder" in text


def test_a_run_without_a_correction_has_none(folders, tmp_path):
    out = tmp_path / "out"
    run(
        "distill",
        folders / "teacher",
        *QUICK,
        "--correction",
        "none",
        "--output-dir",
        out,
        *("--max-train-steps", 12),
    )
    assert DistillConfig.load(out / "distill_config.json").correction == "none"
    assert "loss_critic" not in (out / "log.jsonl").read_text()
