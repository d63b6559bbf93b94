"""Open every page of the site and every report of a demo in Chromium, at phone and desktop width.

python tools/browse.py site runs/demo              # what goes wrong: console, requests, sideways scrolling

tests/test_docs.py looks at the site and at reports in the same way.  After make demo it takes the tutorials' pictures:

    DOCS_PICTURES=1 python -m pytest tests/test_docs.py -k every_page_and_report
"""

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
WIDTHS = {"phone": 390, "desktop": 1280}
HEIGHT = 900
ASSETS = ROOT / "docs/assets"
# The second and third: WebGL without a graphics card, or the meshes of a report would not show.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium(path: str | None = None) -> Iterator[Browser]:
    """The system's browser.  Raises RuntimeError where there is none."""
    path = path or next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        raise RuntimeError(f"none of these is on PATH: {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def faults(page: Path, browser: Browser, width: int, picture: Path | None = None) -> list[str]:
    """What goes wrong with a page at this width; `picture` is where its upper part is kept, in 64 colours."""
    found: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": HEIGHT})
    tab.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: found.append(str(error)))
    tab.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    tab.on(
        "request",
        lambda request: found.append(f"asks for {request.url}") if _elsewhere(request.url) else None,
    )
    tab.goto(page.absolute().as_uri())
    tab.wait_for_load_state("load")
    wider = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if wider > 0:
        found.append(f"{wider} pixels wider than the window")
    if page.name == "report.html":
        # What starts once it is in sight starts; then back to the top.
        for canvas in tab.locator("canvas.mesh").all():
            canvas.scroll_into_view_if_needed()
        tab.evaluate("window.scrollTo(0, 0)")
        tab.wait_for_timeout(500)
    if picture:
        image = Image.open(io.BytesIO(tab.screenshot()))
        image.convert("RGB").quantize(64).save(picture, optimize=True)
    tab.close()
    return found


def _elsewhere(address: str) -> bool:
    return address.startswith(("http:", "https:", "ws:", "wss:"))


def pages(folder: Path) -> list[Path]:
    """All pages of the site, or the demo's overview and the report of each method."""
    demos = [folder / "index.html", *sorted(folder.glob("*/report.html"))]
    return [page for page in demos if page.is_file()] if demos[1:] else sorted(folder.rglob("*.html"))


def look(looked: list[Path], browser: Browser, pictures: Path | None = None) -> list[str]:
    """All that goes wrong with these pages; `pictures` is where report-FOLDER.png of each report is kept."""
    found = []
    for page in looked:
        for name, width in WIDTHS.items():
            wanted = pictures if page.name == "report.html" and name == "desktop" else None
            picture = wanted / f"report-{page.parent.name}.png" if wanted else None
            found += [f"{page} ({name}): {fault}" for fault in faults(page, browser, width, picture)]
    return found


def main(folders: list[Path]) -> int:
    """Look at everything; 1 if anything is wrong."""
    with chromium() as browser:
        looked = [page for folder in folders for page in pages(folder)]
        found = look(looked, browser)
    print(*found, f"{len(found)} faults on {len(looked)} pages", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    sys.exit(main(parser.parse_args().folders))
