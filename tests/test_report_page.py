"""A report and the page of demos, opened in a browser as a person would."""

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from shared_core.run import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import demo

pytestmark = pytest.mark.browser
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every kind of section, a table wider than a telephone, and text that looks like HTML."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([0, 1, 2], [3, 1, 2])
    path = tmp_path_factory.mktemp("report") / "report.html"
    wide = {f"a column with a long name {i}": i / 7 for i in range(20)}
    sections = [
        report.cards({"accuracy": "97.8 %", "gain": "+1.2"}),
        report.heading("Curves"),
        report.text("<script>document.title = 'broken'</script>"),
        report.figure(figure, "Loss parts over steps."),
        report.table([wide]),
        report.images([np.zeros((8, 8), np.uint8), np.full((8, 8, 3), 255, np.uint8)], ["zero", "one"]),
    ]
    report.write_report(path, "CORSD on digits", sections)
    plt.close(figure)
    return path


def test_it_opens_without_an_error_and_fetches_nothing(browser, page_file: Path) -> None:
    page = browser.new_page(viewport=WIDE)
    troubles, requests = [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.title() == "CORSD on digits"
    assert page.get_by_text("<script>document.title").is_visible()
    page.close()


def test_all_its_pictures_show(browser, page_file: Path) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(page_file.as_uri())
    widths = page.eval_on_selector_all("img", "all => all.map(img => img.naturalWidth)")
    assert len(widths) == 3
    assert all(width > 0 for width in widths)
    page.close()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["desk", "telephone"])
def test_nothing_but_the_wide_table_scrolls_sideways(browser, page_file: Path, viewport: dict) -> None:
    page = browser.new_page(viewport=viewport)
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(browser, page_file: Path, scheme: str) -> None:
    page = browser.new_page(viewport=WIDE, color_scheme=scheme)
    page.goto(page_file.as_uri())
    canvas = page.screenshot(clip={"x": 2, "y": 2, "width": 2, "height": 2})
    ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    red, green, blue = (int(part) for part in ink[ink.index("(") + 1 : -1].split(",")[:3])
    assert abs(luminance(*corner(canvas)) - luminance(red, green, blue)) > 0.5
    assert (luminance(*corner(canvas)) < 0.2) == (scheme == "dark")
    page.close()


def test_the_page_of_demos_shows_the_reports_and_leads_to_them(
    browser, page_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corsd"
    folder.mkdir()
    (folder / "report.html").write_text(page_file.read_text(encoding="utf-8"), encoding="utf-8")
    index = tmp_path / "index.html"
    index.write_text(demo.index(tmp_path), encoding="utf-8")
    page = browser.new_page(viewport=WIDE)
    page.goto(index.as_uri())
    assert page.frame_locator("iframe").get_by_role("heading", name="CORSD on digits").is_visible()
    page.get_by_role("link", name="corsd").click()
    assert page.title() == "CORSD on digits"
    page.close()


def corner(png: bytes) -> tuple[int, int, int]:
    import io

    from PIL import Image

    red, green, blue = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[0, 0].tolist()
    return red, green, blue


def luminance(red: int, green: int, blue: int) -> float:
    """0 for black, 1 for white; close enough to tell ink from paper."""
    return (0.21 * red + 0.72 * green + 0.07 * blue) / 255
