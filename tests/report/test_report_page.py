"""The report of a run: everything in it, nothing outside it, nothing unescaped."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

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
FAST = Options(features=False)


class Page(HTMLParser):
    """Text and figures of each section, all references, all tags."""

    def __init__(self, text):
        super().__init__()
        self.text = text
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


@pytest.fixture
def page(tmp_path):
    """Writes the report of a folder, and reads it."""

    def of(folder, options=None):
        return Page(
            Path(write_report(str(folder), str(tmp_path / "report.html"), options)).read_text(
                encoding="utf-8"
            )
        )

    return of


@pytest.fixture
def whole(report):
    """The report of the finished run."""
    return Page(Path(report).read_text(encoding="utf-8"))


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(
        finished, tmp_path / "sskd", ignore=shutil.ignore_patterns("report.html", "events*", "source")
    )


def test_every_section_has_content(whole):
    assert list(whole.sections) == SECTIONS
    figures = {
        "Losses and speed": 7, "Evaluation": 2, "Pseudo-labels": 6, "Time": 1, "Cluster sizes": 1,
        "Map of the features": 2,
    }  # fmt: skip
    for title, least in figures.items():
        assert whole.sections[title].count("svg") >= least, title
    words = {
        "Results": ["direct transfer", "SSKD, ensemble", "SSKD, best teacher"],
        "Ranked lists": ["img", "before: AP", "after: AP"],
        "Example clusters and noise": ["img"],
        "Config": ["META_ARCHITECTURE: SSKD"],
        "Environment": ["numpy"],
    }
    for title, parts in words.items():
        text = " ".join(whole.sections[title])
        assert [part for part in parts if part not in text] == [], title


def test_nothing_is_outside_the_page(whole):
    assert all(reference.startswith(("data:", "#")) for reference in whole.references)
    assert "script" not in whole.tags and "iframe" not in whole.tags and "@import" not in whole.text
    ids = re.findall(' id="([^"]+)"', whole.text)
    assert set(re.findall(r"url\((.*?)\)", whole.text)) <= {f"#{name}" for name in ids} and len(ids) == len(
        set(ids)
    )


def test_every_picture_says_what_it_is(whole):
    tags = re.findall(r"<(?:svg|img) [^>]*>", whole.text)
    assert len(tags) > 30 and all(re.search(' (aria-label|alt)="[^"]+"', tag) for tag in tags)


def test_thumbnails_are_the_images(whole, world):
    name, data = re.search(r'title="([^"]+)" src="data:image/jpeg;base64,([^"]+)"', whole.text).groups()
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (48, 96)
        shown = np.asarray(small, float).mean((0, 1))
    with Image.open(world / "Market-1501-v15.09.15" / "query" / name) as original:
        assert np.abs(shown - np.asarray(original, float).mean((0, 1))).max() < 6


def test_without_images_there_is_no_picture_and_the_lists_are_words(finished, page):
    found = page(finished, Options(images=False))
    assert "img" not in found.tags and "identity 10" in " ".join(found.sections["Ranked lists"])
    assert not [word for word in ("image/jpeg", "personal data", ".jpg") if word in found.text]


def test_names_are_escaped(copy, page, tmp_path):
    bad = '<script>alert("x")</script>'
    config = copy / "config.yaml"
    config.write_text(config.read_text() + f"# {bad}\n")
    (copy / "log.txt").write_text(
        f"[11/22 10:00:00] fastreid INFO: Environment info:\n{bad} env\n[11/22 10:00:01] next\n"
    )
    record = json.loads((copy / "results.json").read_text())
    record["best"]["chosen_on"] = bad
    (copy / "results.json").write_text(json.dumps(record))
    text = page(copy.rename(tmp_path / "<script>alert(1)<"), FAST).text
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;alert(") >= 5  # title, heading, results, config, environment


def test_the_environment_is_the_runs(copy, page):
    (copy / "log.txt").write_text(
        "[11/22 10:00:00] fastreid INFO: Environment info:\nsome machine\n\n[11/22 10:00:01] next\n"
    )
    assert page(copy, FAST).sections["Environment"] == ["Of the run.", "some machine"]


def test_a_run_that_came_without_weights(copy, page):
    for weights in copy.glob("*.pth"):
        weights.unlink()
    sections = page(copy).sections
    assert list(sections) == SECTIONS
    for title in ("Ranked lists", "Map of the features"):
        assert "no model_final.pth" in sections[title][0]
    for title in ("Cluster sizes", "Example clusters and noise"):
        assert sections[title] == ["No checkpoint with pseudo-labels is there."]


def test_a_run_that_came_without_its_source_models(copy, page):
    """Then there are lists and a map of after only, and it is said."""
    sections = page(copy).sections
    text = " ".join(sections["Ranked lists"])
    assert "Before the run: not known" in text and "after: AP" in text and "before: AP" not in text
    assert sections["Map of the features"].count("svg") == 1


def test_a_run_without_its_data(finished, page, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    sections = page(finished).sections
    assert "could not be computed" in sections["Ranked lists"][0]
    assert "could not be listed" in sections["Example clusters and noise"][0]


def test_data_that_has_changed_since(finished, page, world, tmp_path, monkeypatch):
    moved = shutil.copytree(world, tmp_path / "datasets")
    next((moved / "Market-1501-v15.09.15" / "bounding_box_train").iterdir()).unlink()
    monkeypatch.setenv("FASTREID_DATASETS", str(moved))
    note = page(finished, FAST).sections["Example clusters and noise"][0]
    assert "labelled 48 images, and the data set has 47 now" in note


def test_source_and_stock_models(finished, page, tmp_path):
    sections = page(finished / "source" / "peer0").sections
    assert list(sections) == SECTIONS and "no pseudo-labels" in sections["Pseudo-labels"][0]
    assert "svg" in sections["Evaluation"] and "img" in sections["Ranked lists"]
    run(tiny_baseline(tmp_path / "stock"))
    sections = page(tmp_path / "stock").sections
    assert "supervised, Baseline" in " ".join(sections["Results"]) and "img" in sections["Ranked lists"]


def test_radii_that_eps_was_chosen_from(copy, page):
    assert "Radius" not in page(copy, FAST).sections
    saved = torch.load(copy / "model_final.pth", weights_only=True)
    row = {
        "eps": 0.4,
        "clusters": 7,
        "noise_share": 0.1,
        "largest_share": 0.2,
        "silhouette": 0.3,
        "agreement": 0.9,
    }
    saved["refresh"]["history"][0]["sweep"] = [row]
    torch.save(saved, copy / "model_final.pth")
    shown = " ".join(page(copy, FAST).sections["Radius"])
    assert "silhouette" in shown and "0.400" in shown and "20.0%" in shown


def test_folders_that_are_no_run(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="runs below it"):
        write_report(str(finished.parent))
    (tmp_path / "config.yaml").write_text("MODEL: {}\n")
    with pytest.raises(ValueError, match="nothing has been trained"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_a_test_set(page, tmp_path):
    source = str([*TINY_SOURCE, "DATASETS.TESTS", "()"])
    run(tiny_adaptation(tmp_path / "sskd", "DATASETS.TESTS", "()", "SSKD.SOURCE.OPTS", source))
    sections = page(tmp_path / "sskd").sections
    assert sections["Ranked lists"] == ["The run has no test set."] == sections["Map of the features"]
    assert sections["Evaluation"] == ["The run was not evaluated."]
    assert "img" in sections["Example clusters and noise"]
