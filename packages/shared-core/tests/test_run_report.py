import base64
import inspect
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from shared_core.run.report import (
    cards,
    figure,
    heading,
    images,
    row,
    table,
    text,
    video,
    warning,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"quoted\""


def plot():
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4, 2))
    fig.subplots().plot([0, 1, 4])
    return fig


def page(tmp_path, *sections, title="A run", **options):
    write_report(tmp_path / "report.html", title, sections, **options)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def everything():
    return [
        heading(EVIL),
        text(EVIL),
        cards({EVIL: EVIL}),
        table([{EVIL: EVIL}], caption=EVIL),
        figure(plot(), EVIL),
        images([np.zeros((4, 4), np.uint8)], [EVIL]),
    ]


def test_all_text_is_escaped_and_tags_are_balanced(tmp_path):
    html = page(tmp_path, *everything(), title=EVIL, subtitle=EVIL)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert "<script" not in html
    assert "".join(tags.words).count("alert('x')") >= 8


def test_nothing_is_fetched(tmp_path):
    tags = Tags()
    tags.feed(page(tmp_path, *everything()))
    for tag, attributes in tags.seen:
        assert tag not in ("link", "script", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    css = page(tmp_path)
    assert "url(" not in css
    assert "@import" not in css


def test_table_has_all_columns_in_order_of_appearance(tmp_path):
    html = page(tmp_path, table([{"a": 1, "b": 0.123456}, {"a": None, "c": True}]))
    assert re.findall(r"<th scope=\"col\">(.*?)</th>", html) == ["a", "b", "c"]
    cells = re.findall(r"<td(.*?)>(.*?)</td>", html)
    assert [words for _, words in cells] == ["1", "0.1235", "", "–", "", "True"]
    assert [bool(mark) for mark, _ in cells] == [True, True, False, False, False, False]


def test_pictures_keep_their_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    html = page(tmp_path, images([pixels, pixels[..., :1], pixels[..., 0]], width=50))
    found = re.findall(r"data:image/png;base64,([^\"]+)", html)
    opened = [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]
    assert np.array_equal(opened[0], pixels)
    assert np.array_equal(opened[1], pixels[..., 0])
    assert np.array_equal(opened[2], pixels[..., 0])


def test_error_texts(tmp_path):
    with pytest.raises(TypeError, match="a picture is float64; it must be uint8"):
        images([np.zeros((3, 3))])
    with pytest.raises(ValueError, match=r"a picture has shape \(3, 3, 2\)"):
        images([np.zeros((3, 3, 2), np.uint8)])
    with pytest.raises(ValueError, match="1 pictures but 2 captions"):
        images([np.zeros((3, 3), np.uint8)], ["a", "b"])
    with pytest.raises(TypeError, match="a section is a str; make it with text"):
        inspect.unwrap(write_report)(tmp_path / "report.html", "A run", ["<b>raw</b>"])


def test_videos_rows_and_warnings(tmp_path):
    film = b"\0\0\0\x20ftypisom" + bytes(20)
    pair = [video(film, EVIL, width=99), video(film)]
    html = page(tmp_path, row(pair), warning(f"{EVIL}\n\nand more"))
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    shown = [attributes for tag, attributes in tags.seen if tag == "video"]
    assert len(shown) == 2
    for attributes in shown:
        assert base64.b64decode(attributes["src"].removeprefix("data:video/mp4;base64,")) == film
        assert {"autoplay", "muted", "loop", "playsinline"} <= set(attributes)
    assert "width: 99px" in html
    assert "<script>alert" not in html
    assert len(re.findall(r"<p>", html[html.index('class="warning"') :])) == 2
    with pytest.raises(ValueError, match="no MP4 file"):
        video(b"GIF89a and more")


def test_matplotlib_is_left_as_it_was():
    import matplotlib.pyplot as plt

    fig = plot()
    assert figure(fig).startswith("<figure>")
    assert plt.get_fignums() == []
