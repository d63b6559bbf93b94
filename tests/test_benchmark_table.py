"""A study's table: what goes in comes out, processes take turns, and what has no column is refused."""

import csv
import multiprocessing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def table(folder: Path):
    from benchmarks.core.table import Table

    columns = ("method", "seed", "share", "note", "settings", "kept")
    return Table(
        folder / "t.csv", columns, ("method", "seed"), frozenset(["method", "note"]), frozenset(["share"])
    )


def test_what_goes_in_comes_out_sorted_and_without_what_is_empty(tmp_path):
    from benchmarks.core.table import put, read

    shares = [1 / 3, 82 / 96, 0.0, 1.0, 1e-7, 0.29]
    runs = [
        {"method": 'a "b", c', "seed": seed, "share": share, "settings": {"x": [1, 2.5]}, "kept": False}
        for seed, share in enumerate(shares)
    ]
    put(table(tmp_path), *runs[::-1], {"method": "1", "seed": 10, "note": "2.50", "share": None})
    first, *found = read(table(tmp_path))
    assert found == runs
    assert first == {"method": "1", "seed": 10, "note": "2.50"}
    with open(tmp_path / "t.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["share"]) for line in lines[1:]] == pytest.approx([100 * share for share in shares])


def test_a_run_of_the_same_key_takes_the_others_place(tmp_path):
    from benchmarks.core.table import put, read

    for share in (0.5, 0.25):
        put(table(tmp_path), {"method": "a", "seed": 1, "share": share})
    assert [run["share"] for run in read(table(tmp_path))] == [0.25]


def test_what_has_no_column_is_refused_and_nothing_is_lost(tmp_path):
    from benchmarks.core.table import put, read

    put(table(tmp_path), {"method": "a", "seed": 1})
    with pytest.raises(ValueError, match=r"t\.csv has no column for other"):
        put(table(tmp_path), {"method": "b", "seed": 1, "other": 3})
    assert len(read(table(tmp_path))) == 1
    (tmp_path / "t.csv").write_text("method,other\n")
    with pytest.raises(ValueError, match="has the columns method, other"):
        read(table(tmp_path))


def adding(folder: Path, method: str) -> None:
    from benchmarks.core.table import put

    for seed in range(10):
        put(table(folder), {"method": method, "seed": seed})


def test_processes_take_turns(tmp_path):
    from benchmarks.core.table import read

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=adding, args=(tmp_path, method)) for method in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(read(table(tmp_path))) == 30


def test_where_a_run_was_made_is_told_in_columns():
    from benchmarks.core.table import RAN_ON, ran_on

    now = ran_on()
    assert tuple(now) == RAN_ON
    assert now["versions"]["torch"]
    before = {
        "python": "3.11.7",
        "packages": {},
        "platform": "p",
        "machine": "m",
        "cpus": 2,
        "torch_threads": 1,
    }
    assert ran_on({**before, "gpus": [], "git": None, "command": ["a", "b c"]})["command"] == "a 'b c'"
