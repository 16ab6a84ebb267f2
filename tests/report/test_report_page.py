"""The report of a run: everything in it, nothing outside it, nothing unescaped."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_reid import TINY_SOURCE, tiny_adaptation, tiny_baseline

from fastreid_sskd.engine import run
from fastreid_sskd.report import Options, write_report

SECTIONS = [
    "Results", "Losses and speed", "Evaluation", "Pseudo-labels", "Time", "Cluster sizes", "Ranked lists",
    "Map of the features", "Example clusters and noise", "Config", "Environment",
]  # fmt: skip


class Page(HTMLParser):
    """Text and figures of each section, all references, all tags."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.references, self.tags, self._title = {}, [], set(), None
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "srcset")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        self._in_heading = tag == "h2" or (self._in_heading and tag != "section")
        if self._title and tag in ("svg", "img"):
            self.sections[self._title].append(tag)

    def handle_endtag(self, tag):
        self._in_heading = self._in_heading and tag != "h2"
        self._title = None if tag == "section" else self._title

    def handle_data(self, data):
        if self._in_heading:
            self._title = data
            self.sections[data] = []
        elif self._title and data.strip():
            self.sections[self._title].append(data.strip())


def page(path):
    with open(path, encoding="utf-8") as file:
        return Page(file.read())


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(
        finished, tmp_path / "sskd", ignore=shutil.ignore_patterns("report.html", "events*", "source")
    )


def test_every_section_has_content(report):
    sections = page(report).sections
    assert list(sections) == SECTIONS
    figures = {
        "Losses and speed": 7, "Evaluation": 2, "Pseudo-labels": 6, "Time": 1, "Cluster sizes": 1, "Map of the features": 2,
    }  # fmt: skip
    for title, least in figures.items():
        assert sections[title].count("svg") >= least, title
    assert "img" in sections["Ranked lists"] and "img" in sections["Example clusters and noise"]
    text = {title: " ".join(parts) for title, parts in sections.items()}
    assert (
        "direct transfer" in text["Results"]
        and "SSKD, ensemble" in text["Results"]
        and "SSKD, best teacher" in text["Results"]
    )
    assert "before: AP" in text["Ranked lists"] and "after: AP" in text["Ranked lists"]
    assert "META_ARCHITECTURE: SSKD" in text["Config"] and "numpy" in text["Environment"]


def test_nothing_is_outside_the_page(report):
    found = page(report)
    assert all(reference.startswith(("data:", "#")) for reference in found.references)
    assert "script" not in found.tags and "iframe" not in found.tags
    with open(report, encoding="utf-8") as file:
        text = file.read()
    assert "@import" not in text
    ids = re.findall(' id="([^"]+)"', text)
    assert set(re.findall(r"url\((.*?)\)", text)) <= {f"#{name}" for name in ids} and len(ids) == len(set(ids))


def test_every_picture_says_what_it_is(report):
    with open(report, encoding="utf-8") as file:
        tags = re.findall(r"<(?:svg|img) [^>]*>", file.read())
    assert len(tags) > 30 and all(re.search(' (aria-label|alt)="[^"]+"', tag) for tag in tags)


def test_thumbnails_are_the_images(report, world):
    with open(report, encoding="utf-8") as file:
        text = file.read()
    tile = re.search(r'title="([^"]+)" src="data:image/jpeg;base64,([^"]+)"', text)
    with Image.open(io.BytesIO(base64.b64decode(tile[2]))) as small:
        assert small.size == (48, 96)
        with Image.open(world / "Market-1501-v15.09.15" / "query" / tile[1]) as original:
            assert (
                np.abs(np.asarray(small, float).mean((0, 1)) - np.asarray(original, float).mean((0, 1))).max()
                < 6
            )


def test_without_images_there_is_no_picture_and_the_lists_are_words(finished, tmp_path):
    path = write_report(str(finished), str(tmp_path / "report.html"), Options(images=False))
    found = page(path)
    assert "img" not in found.tags and "identity 10" in " ".join(found.sections["Ranked lists"])
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert "image/jpeg" not in text and "personal data" not in text and ".jpg" not in text


def test_names_are_escaped(copy, tmp_path):
    bad = '<script>alert("x")</script>'
    config = copy / "config.yaml"
    config.write_text(config.read_text() + f"# {bad}\n")
    (copy / "log.txt").write_text(
        f"[11/22 10:00:00] fastreid INFO: Environment info:\n{bad} env\n[11/22 10:00:01] next\n"
    )
    record = json.loads((copy / "results.json").read_text())
    record["best"]["chosen_on"] = bad
    (copy / "results.json").write_text(json.dumps(record))
    folder = copy.rename(tmp_path / "<script>alert(1)<")
    path = write_report(str(folder), options=Options(features=False))
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;alert(") >= 5  # title, heading, results, config, environment


def test_the_environment_is_the_runs(copy):
    (copy / "log.txt").write_text(
        "[11/22 10:00:00] fastreid INFO: Environment info:\nsome machine\n\n[11/22 10:00:01] next\n"
    )
    sections = page(write_report(str(copy), options=Options(features=False))).sections
    assert sections["Environment"] == ["Of the run.", "some machine"]


def test_a_run_that_came_without_weights(copy):
    for weights in copy.glob("*.pth"):
        weights.unlink()
    sections = page(write_report(str(copy))).sections
    assert list(sections) == SECTIONS
    for title in ("Ranked lists", "Map of the features"):
        assert "no model_final.pth" in sections[title][0]
    assert (
        sections["Cluster sizes"]
        == ["No checkpoint with pseudo-labels is there."]
        == sections["Example clusters and noise"]
    )


def test_a_run_that_came_without_its_source_models(copy):
    """Then there are lists and a map of after only, and it is said."""
    sections = page(write_report(str(copy))).sections
    text = " ".join(sections["Ranked lists"])
    assert "Before the run: not known" in text and "after: AP" in text and "before: AP" not in text
    assert sections["Map of the features"].count("svg") == 1


def test_a_run_without_its_data(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    sections = page(write_report(str(finished), str(tmp_path / "report.html"))).sections
    assert (
        "could not be computed" in sections["Ranked lists"][0]
        and "could not be listed" in sections["Example clusters and noise"][0]
    )


def test_data_that_has_changed_since(finished, world, tmp_path, monkeypatch):
    moved = shutil.copytree(world, tmp_path / "datasets")
    next((moved / "Market-1501-v15.09.15" / "bounding_box_train").iterdir()).unlink()
    monkeypatch.setenv("FASTREID_DATASETS", str(moved))
    sections = page(
        write_report(str(finished), str(tmp_path / "report.html"), Options(features=False))
    ).sections
    assert "labelled 48 images, and the data set has 47 now" in sections["Example clusters and noise"][0]


def test_source_and_stock_models(finished, tmp_path):
    sections = page(write_report(str(finished / "source" / "peer0"), str(tmp_path / "source.html"))).sections
    assert list(sections) == SECTIONS and "no pseudo-labels" in sections["Pseudo-labels"][0]
    assert "svg" in sections["Evaluation"] and "img" in sections["Ranked lists"]
    run(tiny_baseline(tmp_path / "stock"))
    sections = page(write_report(str(tmp_path / "stock"))).sections
    assert "supervised, Baseline" in " ".join(sections["Results"]) and "img" in sections["Ranked lists"]


def test_radii_that_eps_was_chosen_from(copy):
    assert "Radius" not in page(write_report(str(copy), options=Options(features=False))).sections
    saved = torch.load(copy / "model_final.pth", weights_only=True)
    row = {"eps": 0.4, "clusters": 7, "noise_share": 0.1, "largest_share": 0.2, "silhouette": 0.3, "agreement": 0.9}
    saved["refresh"]["history"][0]["sweep"] = [row]
    torch.save(saved, copy / "model_final.pth")
    shown = " ".join(page(write_report(str(copy), options=Options(features=False))).sections["Radius"])
    assert "silhouette" in shown and "0.400" in shown and "20.0%" in shown


def test_folders_that_are_no_run(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="runs below it"):
        write_report(str(finished.parent))
    (tmp_path / "config.yaml").write_text("MODEL: {}\n")
    with pytest.raises(ValueError, match="nothing has been trained"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_a_test_set(tmp_path):
    run(
        tiny_adaptation(
            tmp_path / "sskd",
            "DATASETS.TESTS",
            "()",
            "SSKD.SOURCE.OPTS",
            str([*TINY_SOURCE, "DATASETS.TESTS", "()"]),
        )
    )
    sections = page(write_report(str(tmp_path / "sskd"))).sections
    assert sections["Ranked lists"] == ["The run has no test set."] == sections["Map of the features"]
    assert (
        sections["Evaluation"] == ["The run was not evaluated."]
        and "img" in sections["Example clusters and noise"]
    )
