"""The page in a real browser: pictures load, turntables play, meshes turn by themselves, by hand and by key."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsd.report import report
from fsd.viewer import mesh_view, viewer_script
from shared_core.run.report import row, write_report

pytestmark = pytest.mark.browser
# WebGL without a graphics card.
SOFTWARE = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# The nose of the made-up objects is yellow, or orange where it is mixed with red; the sum tells turned pictures apart.
PICTURE = """canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let filled = 0, left = 0, nose = 0, sum = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    if (!pixels[i + 3]) continue;
    const x = (i / 4) % canvas.width;
    filled += 1;
    sum = (sum * 31 + pixels[i] + 7 * pixels[i + 1] + 13 * pixels[i + 2]) % 1000000007;
    if (pixels[i] > 90 && pixels[i + 1] > 90 && pixels[i + 2] < 120) { nose += 1; left += x < canvas.width / 2; }
  }
  return { filled: filled / (canvas.width * canvas.height), nose, left, sum, width: canvas.width };
}"""


def opened_chromium(browser_path: str, arguments: list[str]) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Any]:
    yield from opened_chromium(browser_path, SOFTWARE)


@pytest.fixture(scope="module")
def page_file(made_up_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(shutil.copytree(made_up_run, tmp_path_factory.mktemp("page") / "run"))


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page opened at its first mesh; at the end nothing may have gone wrong or been fetched."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    troubles, requests = [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.locator("canvas.mesh").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('figure.mesh').classList.contains('alive')")
    yield page
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


def picture_once_drawn(page: Any, canvas: Any) -> Any:
    """What the canvas shows; a busy machine takes its time to draw the first time."""
    for _ in range(100):
        picture = canvas.evaluate(PICTURE)
        if picture["filled"]:
            return picture
        page.wait_for_timeout(100)
    raise AssertionError("nothing was drawn in ten seconds")


def stopped(page: Any) -> Any:
    """The first mesh, standing still at the angle where a click stopped it."""
    canvas = page.locator("canvas.mesh").first
    canvas.click()
    page.wait_for_timeout(150)
    return canvas


def test_pictures_load(page: Any) -> None:
    widths = page.eval_on_selector_all("img", "all => all.map(img => img.naturalWidth)")
    assert len(widths) == 8
    assert all(widths)


def test_turntables_play_by_themselves(page: Any) -> None:
    # A browser plays only what is in sight.
    for video in page.locator("video").all():
        video.scroll_into_view_if_needed()
        page.wait_for_function("video => video.currentTime > 0.1", arg=video.element_handle())
        shown = video.evaluate("video => [video.muted, video.loop, video.paused, video.videoWidth]")
        assert shown == [True, True, False, 256]


def test_meshes_turn_by_themselves_and_their_canvases_are_filled(page: Any) -> None:
    for canvas in page.locator("canvas.mesh").all():
        canvas.scroll_into_view_if_needed()
        before = picture_once_drawn(page, canvas)
        page.wait_for_timeout(500)
        assert before["filled"] > 0.15
        assert before["sum"] != canvas.evaluate(PICTURE)["sum"]


def test_a_mesh_shows_its_front_and_follows_the_hand(browser: Any, page_file: Path) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.goto(page_file.as_uri())
    canvas = page.locator("canvas.mesh").nth(1)
    canvas.scroll_into_view_if_needed()
    front = picture_once_drawn(page, canvas)
    assert front["nose"] > 100
    assert front["left"] / front["nose"] == pytest.approx(0.5, abs=0.1)
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1], steps=4)  # 30 degrees
    page.mouse.up()
    page.wait_for_timeout(200)
    turned = canvas.evaluate(PICTURE)
    assert turned["nose"] > 100
    assert turned["left"] / turned["nose"] < 0.1
    page.close()


def test_a_click_stops_it(page: Any) -> None:
    canvas = stopped(page)
    before = canvas.evaluate(PICTURE)
    page.wait_for_timeout(400)
    assert canvas.evaluate(PICTURE) == before


def test_keys_turn_and_the_wheel_zooms_once_it_was_clicked(page: Any) -> None:
    canvas = stopped(page)
    before = canvas.evaluate(PICTURE)
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(150)
    turned = canvas.evaluate(PICTURE)
    assert turned["sum"] != before["sum"]
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(150)
    assert canvas.evaluate(PICTURE)["filled"] < 0.8 * turned["filled"]


def test_the_wheel_scrolls_the_page_over_a_mesh_that_was_not_clicked(page: Any) -> None:
    page.locator("canvas.mesh").first.hover()
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 200)
    page.wait_for_function("before => scrollY > before", arg=before)


def test_the_canvas_is_as_sharp_as_the_screen(browser: Any, page_file: Path) -> None:
    context = browser.new_context(device_scale_factor=2)
    page = context.new_page()
    page.goto(page_file.as_uri())
    canvas = page.locator("canvas.mesh").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert canvas.evaluate(PICTURE)["width"] == 2 * canvas.evaluate("canvas => canvas.clientWidth")
    context.close()


def test_nothing_moves_for_those_who_asked_for_less_motion(browser: Any, page_file: Path) -> None:
    page = browser.new_page(reduced_motion="reduce")
    page.goto(page_file.as_uri())
    canvas = page.locator("canvas.mesh").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    first = canvas.evaluate(PICTURE)
    page.wait_for_timeout(400)
    assert first["filled"] > 0.15
    assert canvas.evaluate(PICTURE) == first
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.paused)")
    page.close()


def test_forty_meshes_live_on_one_page(browser: Any, made_up_run: Path, tmp_path: Path) -> None:
    from fsd.glb import read_glb

    mesh = read_glb(made_up_run / "objects" / "a-toy-fsd-seed1" / "mesh.glb")
    views = [mesh_view(mesh, str(k), 500) for k in range(40)]
    write_report(tmp_path / "many.html", "Many", [row(views), viewer_script()])
    page = browser.new_page(viewport={"width": 1200, "height": 4000})
    warnings = []
    page.on("console", lambda message: warnings.append(message.text) if "context" in message.text else None)
    page.goto((tmp_path / "many.html").as_uri())
    page.wait_for_timeout(800)
    shown = page.eval_on_selector_all("canvas.mesh", f"all => all.map({PICTURE})")
    assert len(shown) == 40
    assert all(one["filled"] > 0.1 for one in shown)
    assert warnings == []
    page.close()


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_does_not_scroll_sideways(browser: Any, page_file: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_without_webgl_there_are_words_and_no_error(browser_path: str, page_file: Path) -> None:
    # In a process of its own: the driver of the browser that is open holds this thread.
    from concurrent.futures import ThreadPoolExecutor

    def look() -> tuple[list[str], bool]:
        for chromium in opened_chromium(browser_path, ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]):
            page = chromium.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto(page_file.as_uri())
            visible = page.get_by_text("This browser shows no WebGL 2").first.is_visible()
            return errors, visible
        raise RuntimeError("no browser was opened")

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(look).result() == ([], True)
