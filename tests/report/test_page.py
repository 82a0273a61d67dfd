"""The page as a file: self-contained, escaped, ordered, and clear about what is missing."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from report.example_run import write_log, write_run

from lightning_xai.__main__ import main
from lightning_xai.report import Picture, Results, Table, write_report

HOSTILE = '<img src="x" onerror="alert(1)">'


class Page(HTMLParser):
    """Elements with their attributes, and the text of all that are closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        """All that is read."""
        return " ".join(filter(None, self.texts))

    def all(self, tag):
        """Attributes of the elements of one kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with other attributions, the second with names that are HTML."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first", steps=(10, 20), flagged_at=20)
    return folder / "first", write_run(folder / "second", methods=("gradcam", HOSTILE), steps=(10,))


@pytest.fixture(scope="module")
def text(runs):
    """The page of one run."""
    return write_report(runs[0]).read_text()


def test_everything_is_in_the_one_file(text):
    """No address but within the page, and a policy that forbids any other."""
    addresses = re.findall(r'(?:src|href)="(?!#|data:)(.*?)"', text)
    assert addresses == []
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "default-src 'none'" in text
    assert len(text) < 500_000


def test_no_picture_is_there_twice(text):
    """Each data address once, in the list of pictures or in its figure."""
    found = re.findall(r"data:image/webp;base64,([\w+/=]+)", text)
    assert len(found) > 10
    assert len(set(found)) == len(found)


def test_what_a_run_has_is_in_the_page(text):
    """Summary, tables with intervals, verdicts, figures, settings."""
    read = Page(text).text
    for part in (
        "Two small networks that were trained on noise",
        "Average drop in percent, lower is better Means over 8 images",
        "gradcam 40.0 [39.0, 41.0] 30.0 [29.0, 31.0]",
        "plain: not flagged",
        "guided: flagged",
        "A line that falls.",
        "lambda 0.1",
    ):
        assert part in read


def test_screen_readers_find_their_way(text):
    """Headings in order, names for images, tables and regions, labels for inputs, one title."""
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert {head["scope"] for head in page.all("th")} == {"col", "row"}
    assert len(page.all("legend")) == len(page.all("fieldset")) > 0
    labelled = {label.get("for") for label in page.all("label")}
    assert {one["id"] for one in page.all("input") if one["type"] == "range"} <= labelled
    assert page.all("output")[0]["aria-live"] == "polite"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in page.all("a"))


def test_text_of_a_run_is_never_html(runs):
    """Names of attributions, titles and settings may hold anything; two scripts are ours and one is data."""
    text = write_report(runs[1]).read_text()
    assert HOSTILE not in text
    page = Page(text)
    assert len(page.all("script")) == 2
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert f"{HOSTILE} 41.0" in page.text


def test_two_runs_are_compared_in_a_page_of_their_own(runs):
    """With gaps told, and each run's own page left as it was."""
    before = write_report(runs[0]).read_bytes()
    path = write_report(*runs)
    assert path == runs[0] / "comparison.html"
    assert (runs[0] / "report.html").read_bytes() == before
    read = Page(path.read_text()).text
    assert "first and second" in read
    assert "lrp 41.0 [40.0, 42.0] not in second" in read
    assert "first, plain" in read
    assert "attributions gradcam, lrp gradcam, <img" in read


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    """Two seeds of a recipe, say."""
    for place in ("a", "b"):
        (tmp_path / place / "run").mkdir(parents=True)
        Results("Trial", "Nothing.").save(tmp_path / place / "run")
    read = Page(write_report(tmp_path / "a" / "run", tmp_path / "b" / "run").read_text()).text
    assert f"{tmp_path / 'a' / 'run'} and {tmp_path / 'b' / 'run'}" in read


def test_a_half_written_run_is_shown_as_far_as_it_goes(tmp_path):
    """What is missing is told; the last values take the place of results."""
    write_log(tmp_path / "plain", steps=(10,))
    (tmp_path / "settings.json").write_text('{"seed": 0}')
    read = Page(write_report(tmp_path).read_text()).text
    assert "There is no results.json: the run is not finished" in read
    assert "Explanations, validation, plain" in read
    assert "Method Average drop, %; lower is better Average gain, %; higher is better gradcam 60 60 lrp 61 61" in read


def test_missing_pictures_are_told_in_their_place(tmp_path):
    """Also those that are none, or are not the run's."""
    (tmp_path / "broken.png").write_bytes(b"nothing")
    files = ("none.png", "broken.png", "../secret.png")
    Results("Trial", "Nothing.", pictures=[Picture(file, f"Caption of {file}") for file in files]).save(tmp_path)
    read = Page(write_report(tmp_path).read_text()).text
    assert "The picture none.png is missing in the run's folder. Caption of none.png" in read
    assert "The picture broken.png cannot be shown: expected an image of JPEG, PNG, WEBP" in read
    assert "The picture ../secret.png cannot be shown: `file` expected a path within the run's folder" in read


def test_a_run_of_tables_alone_has_no_empty_parts(tmp_path):
    """Neither in the contents nor below."""
    Results("Trial", "Two numbers.", tables=[Table("T", ["", "x"], [["a", 1.0]])]).save(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert [link["href"] for link in page.all("a")] == ["#main", "#tables"]
    assert len(page.all("section")) == 1


def test_the_command_writes_the_page_and_says_where(tmp_path, capsys):
    """Of one run, and of two."""
    Results("Trial", "Nothing.").save(tmp_path)
    assert main(["report", str(tmp_path)]) == tmp_path / "report.html"
    assert main(["report", str(tmp_path), str(tmp_path)]) == tmp_path / "comparison.html"
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html"), str(tmp_path / "comparison.html")]


@pytest.mark.parametrize(("name", "told"), [("none", "which is no folder"), ("empty", "which is empty")])
def test_the_command_ends_with_a_sentence_where_there_is_no_run(tmp_path, name, told):
    """And leaves no file behind."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=f"`RUN` expected the folder of a run.*{told}"):
        main(["report", str(tmp_path / name)])
    assert list((tmp_path / "empty").iterdir()) == []
