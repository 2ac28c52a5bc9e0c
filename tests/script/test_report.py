"""The page of a run: what it says, in which order, and that it needs nothing but itself."""

import html.parser
import json

import numpy as np
import pytest

from jaxgen import plot
from jaxgen.autoencoder import vae
from jaxgen.evaluation.metric import metric
from jaxgen.run import directory
from jaxgen.script import report

EXTRACTOR = "small-cnn-digits-e260e3da"


class Page(html.parser.HTMLParser):
    """The tags and the text of a page, and its tables as rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.in_cell = [], "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        self.in_cell = tag in ("th", "td")
        if self.in_cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder, metrics, **facts):
    description = directory.describe(
        vae, vae.Config(), data="digits", split="train", num_examples=1438, batch_size=128, about=facts
    )
    directory.write_text(folder / "config.json", json.dumps(description))
    for step in (100, 200):
        directory.log(folder, {"step": step, "loss": 1.0, "steps_per_second": 10.0})
    return Page(report.write(folder, metrics, step=200, test_split="test", num_params=1234).read_text())


@pytest.fixture
def page(tmp_path):
    (tmp_path / "samples").mkdir()
    plot.save_samples(tmp_path / "samples" / "100.png", np.zeros((4, 8, 8, 1)))
    plot.save_samples(tmp_path / "samples" / "200.png", np.zeros((4, 8, 8, 1)))
    plot.save_grid(tmp_path / "classes.png", np.zeros((2, 8, 8, 1)), caption="One & two.")
    plot.save_grid(tmp_path / "own_picture.png", np.zeros((30, 8, 8, 1)), columns=30)
    metrics = {
        "nll_iwae_10": metric(80.5, "nats", 300),
        f"frechet ({EXTRACTOR})": metric(3.3, "", 359, 1.07, 0.14),
        f"precision ({EXTRACTOR})": metric(0.9, "", 359, 0.95, 0.01),
        f"recall ({EXTRACTOR})": metric(0.8, "", 359, 0.96, 0.01),
        f"frechet ({EXTRACTOR}), ddim 10": metric(4.4, "", 359, 1.07, 0.14),
        f"frechet ({EXTRACTOR}), ddim 20": metric(4.2, "", 359, 1.07, 0.14),
    }
    return written(tmp_path, metrics, system="experiments.autoencoder:conv_vae")


def test_what_was_run_stands_in_one_line(page):
    assert "conv_vae on digits" in page.text
    assert (
        "autoencoder.vae after 200 steps, 0.33 minutes; 128 examples a step of the 1,438 of the train split;"
        " 1,234 parameters; measured on the test split after step 200." in page.text
    )


def test_headlines_come_before_tables_with_their_floor(page):
    before = page.text[: page.text.index("value")]
    for words in ("nll iwae 10", "80.5", "frechet", "3.30", "floor 1.07 ± 0.14", "recall", "n = 359"):
        assert words in before
    assert "precision" not in before  # never without what makes it mean something
    assert page.text.index("Numbers") < page.text.index("Pictures") < page.text.index("Training")


def test_tables_name_the_extractor_once_and_leave_empty_columns_out(page):
    likelihoods, samples, ways, *_ = page.tables
    assert likelihoods == [["", "value", "unit", "n"], ["nll iwae 10", "80.5", "nats", "300"]]
    assert samples[0] == ["", "value", "floor", "n"]
    assert [row[0] for row in samples[1:]] == ["frechet", "precision", "recall"]
    assert [row[:2] for row in ways] == [["", "value"], ["ddim 10", "4.40"], ["ddim 20", "4.20"]]
    assert page.text.count(EXTRACTOR) == 2  # above each of the two tables


def test_a_published_figure_has_its_source(tmp_path):
    found = written(tmp_path, {"nll": metric(86.7, "nats", 100, published=86.76, published_source="Burda")})
    assert found.tables[0][0] == ["", "value", "unit", "published", "n"]
    assert found.tables[0][1][3] == "86.76 (Burda)"


def test_pictures_have_sentences_and_wide_ones_a_row(page):
    captions = [image["alt"] for image in page.of("img")]
    assert captions == [
        *("Samples after step 200.", "One & two.", "Own picture."),
        "Means of the training steps since the last point.",
    ]
    assert [figure.get("class") for figure in page.of("figure")] == [None, None, "wide", "wide"]


def test_a_page_needs_nothing_but_itself_and_suits_its_reader(page, tmp_path):
    assert not page.of("link")
    assert not page.of("script")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text
    assert "@import" not in text
    for condition in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", "width=device-width"):
        assert condition in text
    folded = text[text.index("<details>") :]
    assert "<b>DenseDecoder</b>" in folded  # of the configuration, by its class
    assert "<details>" in folded[1:]  # of the run


def test_a_run_that_was_not_evaluated_says_so(tmp_path):
    directory.write_text(tmp_path / "config.json", json.dumps(directory.describe(vae, vae.Config())))
    found = Page(report.write_page(tmp_path).read_text())
    assert "Not evaluated yet" in found.text
    assert "vae on data" in found.text
