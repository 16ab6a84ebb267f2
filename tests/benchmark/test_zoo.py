"""MODEL_ZOO.md from notes and records."""

from pathlib import Path

import jinja2
import pytest

from fastreid_sskd.benchmark import read_results, render_zoo, write_results
from fastreid_sskd.evaluation.evaluator import METRICS

ROOT = Path(__file__).resolve().parents[2]


def test_the_projects_zoo_is_what_its_notes_and_records_give():
    """Change benchmarks/model_zoo.md and run `tools/benchmark.py zoo`, not MODEL_ZOO.md."""
    text = render_zoo(str(ROOT / "benchmarks" / "model_zoo.md"), str(ROOT / "benchmarks" / "records"))
    assert text == (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_the_recorded_demonstration():
    results = [
        r
        for r in read_results(str(ROOT / "benchmarks/records/demo.json"))
        if not r.selection.startswith("best")
    ]
    expected = {r.method: [f"{r.metrics[name]:.1f}" for name in METRICS] for r in results}
    lines = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("\n| last epoch, %")[1]
        .split("\n\n")[0]
        .splitlines()[2:]
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {method: figures for method, *figures in cells} == expected and len(expected) == 8


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text('# Notes\n\n{{ table("mine", target="a subset & more") }}\n\nAfter <all>.\n')
    return path


def test_table_from_records_with_names_of_the_notes(tmp_path, notes, make_result):
    best = make_result(60.0, method="chosen", selection="best on T test split, by mAP")
    write_results([make_result(), make_result(method="n"), best], str(tmp_path / "records" / "mine.json"))
    text = render_zoo(str(notes), str(tmp_path / "records"))
    assert text.startswith("# Notes\n\n| method") and text.endswith("\n\nAfter <all>.\n")
    assert "S -> a subset & more" in text and "chosen" not in text
    notes.write_text('{{ table("mine", best=True) }}')
    assert "chosen" in render_zoo(str(notes), str(tmp_path / "records"))


def test_a_run_folder_renews_the_record(tmp_path, notes, finished):
    runs, records = tmp_path / "runs", tmp_path / "records"
    runs.mkdir()
    (runs / "mine").symlink_to(finished)
    text = render_zoo(str(notes), str(records), str(runs))
    assert "SSKD, ensemble" in text and "best teacher" not in text
    assert "SSKD, best teacher" in [r.method for r in read_results(str(records / "mine.json"))]
    assert render_zoo(str(notes), str(records)) == text


def test_neither_record_nor_run(tmp_path, notes):
    with pytest.raises(FileNotFoundError, match=r"mine\.json"):
        render_zoo(str(notes), str(tmp_path / "records"), str(tmp_path / "runs"))


def test_a_slip_in_the_notes(tmp_path, notes):
    notes.write_text("{{ tabel('mine') }}")
    with pytest.raises(jinja2.UndefinedError, match="tabel"):
        render_zoo(str(notes), str(tmp_path))
