"""The site is built without a warning, says what is there, and opens in a browser at phone and desktop width."""

import fcntl
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("corsd", "fsd", "calib")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once, also where several processes share the tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [sys.executable, str(ROOT / "tools/docs.py"), str(folder)]
            done = subprocess.run(command, text=True, capture_output=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses += [address for key in ("src", "srcset") if (address := given.get(key))]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.addresses += [given.get("href") or ""]


def loaded(page: Path) -> list[str]:
    parser = Loaded()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.addresses


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    elsewhere = {page.name: [a for a in loaded(page) if re.match(r"(https?:)?//", a)] for page in pages}
    assert {name: found for name, found in elsewhere.items() if found} == {}
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", styles) == []


def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    text = (site / "explanation/fsd.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 20
    assert "arithmatex" not in text
    assert "\\epsilon" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_every_public_name_is_documented(site: Path) -> None:
    for package in PACKAGES:
        text = (site / f"reference/{package}.html").read_text(encoding="utf-8")
        for name in importlib.import_module(package).__all__:
            assert re.search(rf'<a [^>]*href="#[\w.]+"[^>]*><code>{package}\.{name}</code>', text), (
                f"{package}.{name} is in __all__; add ::: and its module to docs/reference/{package}.md"
            )


def test_every_module_of_the_core_is_documented(site: Path) -> None:
    """It has no __all__: a module is imported by its own name, so all modules and what they define are public."""
    text = (site / "reference/shared-core.html").read_text(encoding="utf-8")
    source = ROOT / "packages/shared-core/src"
    for file in source.rglob("[!_]*.py"):
        module = ".".join(file.relative_to(source).with_suffix("").parts)
        for name in re.findall(r"^(?:def|class) ([^_]\w*)", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert f'id="{module}.{name}"' in text, f"add ::: {module} to docs/reference/shared-core.md"


def test_every_command_and_setting_is_in_the_reference(site: Path) -> None:
    text = (site / "reference/fsd.html").read_text(encoding="utf-8")
    assert "$ fsd train-prior --help" in text
    assert "<code>optim.learning_rate</code>" in text


def test_notebooks_are_offered(site: Path) -> None:
    assert {path.name for path in (site / "notebooks").iterdir()} == {
        "try_corsd.ipynb",
        "try_fsd.ipynb",
        "try_calib.ipynb",
    }


def test_the_menu_names_no_page_twice() -> None:
    menu = re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(set(menu)) == sorted(menu)


def test_every_page_is_in_the_menu(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")]
    assert [page for page in pages if f'href="{page}"' not in text] == []


def test_the_citation_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = [identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]]
    assert papers == ["arXiv:2305.00918", "arXiv:2405.10988", "arXiv:1911.12796"]
    checked = [
        Path(sys.executable).parent / "check-jsonschema",
        "--builtin-schema",
        "vendor.citation-file-format",
    ]
    done = subprocess.run([*map(str, checked), str(ROOT / "CITATION.cff")], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_contributing_takes_three_commands() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(.*?)```", text, flags=re.DOTALL)
    assert block
    lines = block[1].strip().splitlines()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [line.split()[1] in targets for line in lines] == [True] * 3


def load_tool() -> ModuleType:
    """tools/browse.py; the scripts there are no package, since nobody imports them."""
    spec = importlib.util.spec_from_file_location("browse", ROOT / "tools/browse.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a report of each method on a kept run, of runs of several cells, and of a prior's training."""
    for distribution, package in (("corsd", "corsd"), ("calib-uda", "calib"), ("fsd", "fsd")):
        shutil.copytree(ROOT / "tests/compat/0.1.0" / distribution, tmp_path / package, symlinks=True)
        monkeypatch.chdir(tmp_path / package)  # configurations name their data from there
        made(package, "report", "finished")
        (tmp_path / package / "finished/report.html").rename(tmp_path / package / "report.html")
        if package in SEVERAL:
            made(
                package,
                *SEVERAL[package],
                "--config",
                "finished/config.yaml",
                "--out",
                f"../{package}-several",
            )
    made("fsd", "train-prior", "--preset", "tiny", "--steps", "2", "--out", "../fsd-prior")
    return tmp_path


SEVERAL = {
    "corsd": ("train", "--controls", "ce", "rkd", "--seeds", "0", "1", "--epochs", "1"),
    "calib": ("adapt", "--baselines", "tent", "--seeds", "0", "1", "--steps", "2"),
}


def made(package: str, *command: str) -> None:
    """One command of a package, in this process."""
    assert importlib.import_module(f"{package}.cli").main(list(command)) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.browser
def test_every_page_and_report_opens(site: Path, reports: Path, browser_path: str) -> None:
    """With DOCS_PICTURES=1 it also writes the tutorials' pictures, docs/assets/report-*.png, from runs/demo."""
    browse = load_tool()
    looked = [page for folder in (site, reports) for page in browse.pages(folder)]
    assert len(looked) > 25
    demo = browse.pages(ROOT / "runs/demo")
    named, of_demo = ({p.parent.name for p in pages if p.name == "report.html"} for pages in (looked, demo))
    assert named >= {"corsd", "corsd-several", "calib", "calib-several", "fsd", "fsd-prior"}
    pictures = browse.ASSETS if os.environ.get("DOCS_PICTURES") else None
    assert not pictures or of_demo == set(PACKAGES), "run make demo first"
    with browse.chromium(browser_path) as browser:
        assert browse.look(looked, browser, reports) + browse.look(demo, browser, pictures) == []
    for package in PACKAGES:
        for folder in (reports, browse.ASSETS):
            with Image.open(folder / f"report-{package}.png") as picture:
                assert picture.size == (browse.WIDTHS["desktop"], browse.HEIGHT)
                assert len(picture.getcolors() or []) > 8, "an empty page"


@pytest.mark.browser
def test_what_is_wrong_with_a_page_is_found(tmp_path: Path, browser_path: str) -> None:
    browse = load_tool()
    (tmp_path / "bad.html").write_text(
        "<div style='width: 900px'>wide</div><script>console.error('oh'); nothing()</script><img src='none.png'>"
    )
    picture = tmp_path / "bad.png"
    with browse.chromium(browser_path) as browser:
        found = " ".join(browse.faults(tmp_path / "bad.html", browser, 390, picture))
    for fault in ("oh", "nothing is not defined", "none.png", "pixels wider than the window"):
        assert fault in found
    assert picture.stat().st_size > 100


@pytest.mark.browser
def test_the_search_works_from_the_disk(site: Path, browser_path: str) -> None:
    with load_tool().chromium(browser_path) as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto((site / "index.html").as_uri())
        tab.click("input[name=query]")
        tab.keyboard.type("triplet hinge")  # the search listens to keys
        tab.wait_for_selector(".md-search-result__item", timeout=20_000)
        shown = tab.inner_text(".md-search-result__list")
    assert "CORSD" in shown
