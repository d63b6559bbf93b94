import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import yaml
from shared_core.run import atomic
from shared_core.run.config import Config
from shared_core.run.environment import describe
from shared_core.run.folder import RunFolder, RunFolderError, write_json


class Train(Config):
    """Train."""

    epochs: int = 3
    device: str = "cpu"


def test_a_new_run(tmp_path):
    with RunFolder(tmp_path / "runs" / "a").open(Train()) as run:
        assert yaml.safe_load(run.config.read_text()) == {"epochs": 3, "device": "cpu"}
        assert json.loads(run.environment.read_text())["packages"]["torch"]
        assert not run.finished()
        write_json(run.result, {"accuracy": 0.5})
        assert run.finished()


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_a_file_is_no_run_folder(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file, or lies in one: choose a folder"):
        RunFolder(tmp_path / name).open({})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_is_not_touched(tmp_path):
    with RunFolder(tmp_path).open(Train()) as run:
        write_json(run.result, {})
    for resume in (False, True):
        with pytest.raises(RunFolderError, match="holds a finished run: choose another folder, or delete it"):
            RunFolder(tmp_path).open(Train(), resume=resume)


def test_an_unfinished_run_wants_resume_and_the_same_configuration(tmp_path):
    RunFolder(tmp_path).open(Train()).close()
    with pytest.raises(RunFolderError, match="holds an unfinished run: resume it"):
        RunFolder(tmp_path).open(Train())
    with pytest.raises(RunFolderError, match=r"another configuration: epochs was 3, is 4$"):
        RunFolder(tmp_path).open(Train(epochs=4), resume=True)
    RunFolder(tmp_path).open(Train(), resume=True).close()
    RunFolder(tmp_path).open(Train(device="cuda"), resume=True, ignore=["device"]).close()


def test_resume_of_nothing_starts(tmp_path):
    RunFolder(tmp_path / "new").open({"a": {"b": 1}}, resume=True).close()
    with pytest.raises(RunFolderError, match=r"a\.b was 1, is 2"):
        RunFolder(tmp_path / "new").open({"a": {"b": 2}}, resume=True)


def test_a_setting_that_an_earlier_version_lacked_is_no_difference_and_an_empty_record_is_one(tmp_path):
    RunFolder(tmp_path).open({"a": {"b": 1}}).close()
    RunFolder(tmp_path).open({"a": {"b": 1, "new": 2}, "newer": 3}, resume=True).close()
    with pytest.raises(RunFolderError, match=r"a\.b was 1, is 2$"):
        RunFolder(tmp_path).open({"a": {"b": 2, "new": 2}}, resume=True)
    RunFolder(tmp_path / "other").open({}).close()
    with pytest.raises(RunFolderError, match="a was None, is 1"):
        RunFolder(tmp_path / "other").open({"a": 1}, resume=True)


def test_a_second_opening_is_refused_until_the_first_ends(tmp_path):
    first = RunFolder(tmp_path).open(Train())
    with pytest.raises(RunFolderError, match="another process is running in"):
        RunFolder(tmp_path).open(Train(), resume=True)
    first.close()
    RunFolder(tmp_path).open(Train(), resume=True).close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time\nfrom shared_core.run.folder import RunFolder\n"
        "run = RunFolder(sys.argv[1]).open({'a': 1})\nprint('open', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    with pytest.raises(RunFolderError, match="another process is running in"):
        RunFolder(tmp_path).open({"a": 1}, resume=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    RunFolder(tmp_path).open({"a": 1}, resume=True).close()


def test_env_names_no_host_and_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [f"{tmp_path}/bin/corsd", "train", f"--out={tmp_path}/runs/a"])
    found = describe()
    text = json.dumps(found)
    assert str(tmp_path) not in text
    assert os.uname().nodename not in found["platform"]
    assert found["command"] == ["corsd", "train", "--out=~/runs/a"]
    assert found["python"].startswith("3.")
    assert found["torch_threads"] >= 1


def test_env_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe()["git"] is None


def test_write_json_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def interrupt(handle):
    raise KeyboardInterrupt


def test_a_result_is_as_readable_as_any_new_file(tmp_path):
    write_json(tmp_path / "r.json", {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "r.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def write_often(path, value):
    for _ in range(50):
        write_json(path, {"value": [value] * 2000})


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"value": [0]})
    writer = multiprocessing.get_context("fork").Process(target=write_often, args=(path, 1))
    writer.start()
    while writer.is_alive():
        assert set(json.loads(path.read_text())["value"]) in ({0}, {1})
    writer.join()
