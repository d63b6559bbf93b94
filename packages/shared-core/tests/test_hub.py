"""Folders for the hub: found, refused with a sentence, and described on a card."""

import json
from pathlib import Path

import pytest
from shared_core.hub import card, fetch, read_config, read_result

hub = pytest.importorskip("huggingface_hub")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch(tmp_path, ["config.json"]) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give the folder"):
        fetch(tmp_path / "file", [])
    with pytest.raises(ValueError, match=r"there is no folder .*owner/name"):
        fetch(tmp_path / "nothing", [])
    with pytest.raises(ValueError, match="there is no folder nothing"):
        fetch("nothing", [])


def test_a_repository_is_downloaded_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(name: str, **settings) -> str:
        asked[name] = settings
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert fetch("me/net", ["config.json"], revision="v1") == tmp_path
    assert asked == {"me/net": {"allow_patterns": ["config.json"], "revision": "v1"}}

    def nobody_there(*_: object, **__: object) -> str:
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(hub, "snapshot_download", nobody_there)
    with pytest.raises(ValueError, match=r"no folder me/net here.* cannot be read: no network$"):
        fetch("me/net", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"holds no config\.json.*net\.pt may hold code"),
        ("{", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("[]", "holds a list"),
        ('{"a": 1}', "holds another library's model, not x.Net"),
        ('{"class": "y.Net"}', "holds y.Net, not x.Net: load it with that class"),
        (
            '{"class": "x.Net", "format": 2, "x": "9.0"}',
            r"format 2, written by x 9\.0; this version reads format 1",
        ),
        ('{"class": "x.Net", "format": 1, "x": "9.0", "b": 1}', "does not know: b"),
    ],
)
def test_what_is_not_ours_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path, "x.Net", "x", ["a"])


def test_a_good_record_is_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"class": "x.Net", "format": 1, "x": "0.1", "a": 3}')
    assert read_config(tmp_path, "x.Net", "x", ["a", "b"]) == {"a": 3}
    assert read_result(tmp_path) == {}
    (tmp_path / "result.json").write_text(json.dumps({"accuracy": 1.5}))
    assert read_result(tmp_path) == {"accuracy": 1.5}
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_result(tmp_path)


def test_a_card_is_readable_by_the_hub_and_keeps_its_table() -> None:
    text = card(
        "Title", ["A sentence."], "import x", {"a|b": "1|2\n3", "none": None, "number": 1.23456},
        {"license": "mit", "tags": ["x"]}, ["Beware."],
    )  # fmt: skip
    found = hub.ModelCard(text)
    assert found.data.license == "mit"
    assert "> **Beware.**" in text
    assert "| number | 1.235 |" in text
    assert "1\\|2 3" in text
    assert "none" not in text
