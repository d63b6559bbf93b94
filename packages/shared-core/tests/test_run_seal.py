"""Files of a run that changed after they were written are told by name."""

import json
from pathlib import Path

import pytest
from shared_core.run.folder import RunFolder, RunFolderError
from shared_core.run.seal import check_seal, seal, unseal, write_sealed


def test_what_changed_is_named_until_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_bytes(b"content")
    seal(tmp_path, ["a", "sub/b", "absent"])
    check_seal(tmp_path)
    (tmp_path / "new").write_bytes(b"of another command")
    check_seal(tmp_path)
    (tmp_path / "sub" / "b").write_bytes(b"contenu")
    with pytest.raises(RunFolderError, match=r"sub/b is not what this run wrote .*delete .*files\.json"):
        check_seal(tmp_path)
    check_seal(tmp_path, ["a"])
    seal(tmp_path, ["sub/b"])
    check_seal(tmp_path)
    (tmp_path / "a").unlink()
    check_seal(tmp_path)
    (tmp_path / "a").write_bytes(b"anew")
    unseal(tmp_path, ["a"])
    check_seal(tmp_path)
    write_sealed(tmp_path / "a", {})
    check_seal(tmp_path)
    (tmp_path / "a").write_bytes(b"[]")
    with pytest.raises(RunFolderError, match="a is not what this run wrote"):
        check_seal(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "[" * 5000])
def test_a_damaged_seal_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "files.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"files\.json cannot be read"):
        check_seal(tmp_path)


def test_a_folder_without_a_seal_passes(tmp_path: Path) -> None:
    check_seal(tmp_path)


def test_a_configuration_that_was_changed_by_hand_stops_the_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path).open({"lr": 0.1}).close()
    RunFolder(tmp_path).open({"lr": 0.1}, resume=True).close()
    assert list(json.loads((tmp_path / "files.json").read_text())) == ["config.yaml"]
    (tmp_path / "config.yaml").write_text("lr: 0.2\n")
    with pytest.raises(RunFolderError, match=r"config\.yaml is not what this run wrote"):
        RunFolder(tmp_path).open({"lr": 0.2}, resume=True)
    (tmp_path / "config.yaml").write_text("lr: [\n")
    (tmp_path / "files.json").unlink()
    with pytest.raises(RunFolderError, match=r"config\.yaml cannot be read"):
        RunFolder(tmp_path).open({"lr": 0.2}, resume=True)
