"""The command of the benchmarks, its report, and the bars beside the figures."""

import json

import pytest
import torch

import edgeq
from recipes.benchmarks import bars, machine
from recipes.benchmarks.__main__ import main
from recipes.benchmarks.bars import Bar
from recipes.benchmarks.report import Section, write
from tests.test_presets import CALIBRATED


def test_a_bar_is_met_at_its_limit_and_missed_beyond_it_on_either_side():
    assert [Bar(1.15).met(value) for value in (1.1, 1.15, 1.16)] == [True, True, False]
    assert [Bar(31, False).met(value) for value in (30.9, 31, 40)] == [False, True, True]
    assert (str(Bar(0.2, unit=" of torch.ao")), str(Bar(31, False, " dB"))) == ("<= 0.2 of torch.ao", ">= 31 dB")


@pytest.mark.parametrize(
    ("preset", "limits"),
    [
        ("WC8_AT8", {"agreement %": 99.0, "SQNR dB": 31.0}),
        ("WT8SYMP2_AT8SYMP2", {"agreement %": 97.5, "SQNR dB": 25.0}),
        ("WC4_AT8", {"change": -1.0}),
        ("WC4_AT4", {"change": -4.0}),
        ("WC2_AT4", {}),
    ],
)
def test_a_presets_bars_follow_from_its_bits_and_scales(preset, limits):
    found = bars.accuracy_bars(edgeq.load_preset(preset))
    assert {column: bar.limit for column, bar in found.items()} == limits


@pytest.mark.parametrize(
    ("flags", "found"), [("sse avx512_vnni", True), ("avx_vnni", True), ("avx512_vnni_like avx2", False)]
)
def test_vnni_is_read_from_the_flags_of_the_cpu(monkeypatch, tmp_path, flags, found):
    (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert (machine.has_vnni(), machine.environment()["CPU"]) == (found, "Some CPU")


def test_a_table_has_every_column_of_its_rows_and_leaves_out_what_is_missing():
    rows = [{"what": "a", "x": 1.0}, {"what": "bcd", "y": 0.25, "x": None}]
    table = Section("T", rows, []).table()
    assert table == "| what | x    | y    |\n|------|------|------|\n| a    | 1.00 |      |\n| bcd  |      | 0.25 |"


def test_the_files_hold_the_rows_the_notes_and_what_they_were_measured_on(tmp_path):
    write(tmp_path / "new", {"torch": "2"}, [Section("T", [{"x": 1 / 3}], ["rough"], digits=1)])
    data = json.loads((tmp_path / "new" / "benchmarks.json").read_text())
    assert data == {"environment": {"torch": "2"}, "sections": {"T": [{"x": 1 / 3}]}}
    text = (tmp_path / "new" / "benchmarks.md").read_text()
    assert ("torch 2" in text, "| 0.3 |" in text, "- rough" in text) == (True, True, True)


def test_the_command_measures_what_it_is_told_to(files, tmp_path, capsys):
    network, weights, images = map(str, files)
    threads = torch.get_num_threads()
    try:
        assert main(["accuracy", "--network", network, "--weights", weights, "--images", images,
                     "--test-images", "2", "--output", str(tmp_path)]) == 0  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    (section,) = json.loads((tmp_path / "benchmarks.json").read_text())["sections"].items()
    assert section[0] == "Accuracy of Net on 2 images of photos"
    assert [row["preset"] for row in section[1]] == ["float", *CALIBRATED]
    assert section[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accuracy", "--network", "a.py:B"], "--network, --weights and --images go together"),
        (["speed", "--networks", "resnet18", "resnet17"], "torchvision.models has no resnet17"),
    ],
)
def test_a_command_line_that_does_not_fit_together_stops_before_anything_is_measured(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
