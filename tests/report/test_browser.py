"""The page in a real browser: Chromium through Playwright, where the machine has both."""

import os
import shutil

import pytest
from report.example_run import write_run
from report.test_page import HOSTILE

from lightning_xai.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

SIZES = [(1280, 900), (360, 740)]
THEMES = ["light", "dark"]
PATIENCE = 120_000  # milliseconds: other tests may run at the same time


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, or Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses to run as root with one
    with playwright.sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(executable_path=found, args=sandbox, timeout=PATIENCE)
        except playwright.Error as error:
            pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run, and that of two runs; one has HTML in its names."""
    folder = tmp_path_factory.mktemp("runs")
    methods = ("gradcam\nraw logit", "gradcam\ncentred", HOSTILE)
    runs = write_run(folder / "first", flagged_at=20), write_run(folder / "second", methods, steps=(20,))
    return {"report": write_report(runs[0]), "comparison": write_report(*runs)}


@pytest.fixture
def opened(browser, pages):
    """Opens a page from disk, without a network; whatever it complains of or asks for is kept in ``page.seen``."""
    contexts = []

    def open_page(name="report", size=SIZES[0], theme="light"):
        contexts.append(
            browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=theme)
        )
        contexts[-1].set_offline(True)
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.seen = []
        page.on("console", lambda message: page.seen.append(message.text))
        page.on("pageerror", lambda error: page.seen.append(str(error)))
        page.on("request", lambda request: request.url.startswith("data:") or page.seen.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_opens_from_disk_without_errors_or_requests(opened, pages, name):
    """All its pictures are there, and text of the run is not executed."""
    page = opened(name)
    assert page.seen == [pages[name].as_uri()]
    images = page.locator("img:visible")
    assert images.count() > 10
    assert images.evaluate_all(
        "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth > 0)))"
    ).count(True) == len(images.all())


def test_the_slider_moves_by_keyboard(opened):
    """Its position is told, and the pictures follow; the image itself stays."""
    page = opened()
    slider, said = page.get_by_label("Step", exact=True), page.locator("output")
    row = page.locator("#images [data-model=plain] img")
    assert said.inner_text() == "step 30, epoch 2"
    last = [image.get_attribute("src") for image in row.all()]
    slider.focus()
    page.keyboard.press("Home")
    assert (said.inner_text(), slider.get_attribute("aria-valuetext")) == ("step 10, epoch 0",) * 2
    first = [image.get_attribute("src") for image in row.all()]
    assert [before == after for before, after in zip(last, first, strict=True)] == [True, False, False] * 2
    page.keyboard.press("ArrowRight")
    assert said.inner_text() == "step 20, epoch 1"


def test_networks_and_attributions_are_switched_by_keyboard(opened):
    """Arrows move from choice to choice, as of any group of buttons."""
    page = opened()
    rows = page.locator("#images [data-model]:visible")
    assert {row.get_attribute("data-model") for row in rows.all()} == {"plain", "guided"}
    page.locator("#images").get_by_role("group", name="Model").get_by_label("all").focus()
    page.keyboard.press("ArrowRight")
    assert {row.get_attribute("data-model") for row in rows.all()} == {"plain"}
    page.locator("#images").get_by_role("group", name="Attribution").get_by_label("all").focus()
    page.keyboard.press("ArrowRight")
    tiles = page.locator("#images figure:visible figcaption").all_inner_texts()
    assert tiles == ["image", "gradcam"] * 2


def test_scores_are_switched_and_gaps_are_told(opened):
    """In the comparison one run has scores, the other has none."""
    page = opened("comparison")
    viewer = page.locator("#images")
    viewer.get_by_role("group", name="Model").get_by_label("second, plain").check()
    viewer.get_by_role("group", name="Score").get_by_label("centred").check()
    figures = viewer.locator("[data-model='second, plain']").first.locator("figure:visible")
    shown = {figure.locator("figcaption").inner_text(): figure.locator("img").is_visible() for figure in figures.all()}
    assert shown == {"image": True, "gradcam": False, "lrp": False, "gradcam, centred": True, HOSTILE: True}
    viewer.get_by_label("Step", exact=True).press("Home")
    assert viewer.locator("[data-model='second, plain'] .missing:visible").count() == 2 * 4


def test_worst_and_best_images_are_switched_by_keyboard(opened):
    """One list at a time."""
    page = opened()
    part = page.locator("#extremes")
    assert part.locator("h3:visible").all_inner_texts() == ["Average drop, %; lower is better"]
    assert part.locator(".ranked:visible").first.locator("strong").all_inner_texts() == ["70", "60", "50"]
    part.get_by_role("group", name="Metric").get_by_label("Average drop").focus()
    page.keyboard.press("ArrowRight")
    assert part.locator("h3:visible").all_inner_texts() == ["Average gain, %; higher is better"]
    assert part.locator(".ranked:visible").first.locator("strong").all_inner_texts() == ["0", "10", "20"]


def test_the_first_tab_skips_to_the_results(opened):
    """The link is seen when it has the focus."""
    page = opened()
    page.keyboard.press("Tab")
    assert page.locator(".skip:focus").bounding_box()["x"] > 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


# Boxes of what is read, without what lies in a part that scrolls sideways by itself.
BOXES = """() => {
  const kinds = "h1, h2, h3, h4, p, dt, dd, li, label, legend, output, input, img, figcaption, .scroll, .chart text";
  const shown = [...document.querySelectorAll(kinds)].filter((one) =>
    one.checkVisibility() && !one.closest(".skip") && !one.parentElement.closest(".scroll") &&
    !one.querySelector(kinds));
  return shown.map((one) => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    const text = one.tagName + " " + one.textContent.trim();
    return { left, top: top + scrollY, right, bottom: bottom + scrollY, text };
  });
}"""


def overlapping(first, second):
    """Whether two boxes share more than a pixel in both directions."""
    return all(
        min(first[high], second[high]) - max(first[low], second[low]) > 1.5
        for low, high in (("left", "right"), ("top", "bottom"))
    )


@pytest.mark.parametrize("size", SIZES, ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_overlaps_or_leaves_the_page(opened, name, size):
    """At desktop and phone width."""
    page = opened(name, size)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 50
    assert [box["text"] for box in boxes if box["left"] < 0 or box["right"] > size[0] + 0.5] == []
    boxes.sort(key=lambda box: box["top"])
    pairs = [(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 : i + 40]]
    assert [(one["text"], other["text"]) for one, other in pairs if overlapping(one, other)] == []


# The lowest contrast of text with what lies behind it (WCAG 2: at least 4.5), and whose it is.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255).map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return colour.endsWith(", 0)") && one.parentElement ? behind(one.parentElement) : colour;
  };
  const found = [...document.querySelectorAll("h1, p, a, td, th, label, figcaption, .interval, .gap, dt, dd")]
    .filter((one) => one.checkVisibility())
    .map((one) => {
      const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
      return [(high + 0.05) / (low + 0.05), one.outerHTML.slice(0, 80)];
    });
  return found.sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.parametrize("size", SIZES, ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", THEMES)
def test_light_and_dark_are_readable(opened, tmp_path, theme, size):
    """The page is bright or dark as the reader wants it, and all text stands out."""
    page = opened("comparison", size, theme)
    page.screenshot(path=tmp_path / f"{theme}_{size[0]}.png", full_page=True)
    contrast, whose = page.evaluate(CONTRAST)
    assert contrast > 4.5, whose
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[theme]


def test_paper_is_white_and_has_no_buttons(opened):
    """Whatever the screen looks like."""
    page = opened(theme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("fieldset:visible, nav:visible, input:visible").count() == 0
    assert page.locator("output:visible").inner_text() == "step 30, epoch 2"
    assert page.pdf().startswith(b"%PDF")
