"""Every benchmark runs on small sizes and writes the JSON that it promises; what it measures is not judged here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
TORCHDISTILL = BENCHMARKS / "peers/torchdistill"

SPREAD = {
    "type": "object",
    "required": ["median", "lower", "upper"],
    "additionalProperties": {"type": "number"},
}
FIGURE = {
    "type": "object",
    "required": ["name", "what", "unit", "values", "goal", "met", "repeats"],
    "properties": {
        "values": {"type": "object", "minProperties": 2, "additionalProperties": SPREAD},
        "ratio": SPREAD,
        "difference": SPREAD,
        "goal": {"type": ["number", "null"]},
        "met": {"type": ["boolean", "null"]},
        "repeats": {"type": "integer", "minimum": 1},
    },
    "oneOf": [{"required": ["ratio"]}, {"required": ["difference"]}],
}
SCHEMA = {
    "type": "object",
    "required": ["quick", "figures", "load", "environment"],
    "properties": {"figures": {"type": "array", "items": FIGURE}, "environment": {"type": "object"}},
}


def run(script: str, out: Path, *options: str | Path, **environment: str) -> dict:
    """The JSON that a quick run of a benchmark wrote; ``environment`` replaces all but PATH."""
    command = [sys.executable, "-m", f"benchmarks.{script}", "--out", out, "--quick", *options]
    variables = {"PATH": os.environ["PATH"], **environment} if environment else None
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    jsonschema.validate(record, SCHEMA)
    assert record["quick"]
    # a printed line for each figure
    assert [f["name"] for f in record["figures"] if f"{f['name']}: " not in done.stdout] == []
    return record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "figures"),
    [
        ("corsd.step", {"in_batch time", "in_batch memory", "triplets time", "rkd time"}),
        ("corsd.loader", {"loader against the step of width 8"}),
        ("corsd.import_time", {"import corsd", "corsd.Distiller", "corsd --help"}),
        ("fsd.import_time", {"import fsd", "fsd.FlowScoreDistillation", "fsd --help"}),
        (
            "fsd.step",
            {f"{p}: {what}" for p in ("bank", "unet") for what in ("FSD over SDS", "step over irreducible")},
        ),
        (
            "fsd.forward",
            {f"{form} over eager" for form in ("channels-last", "bf16", "bf16, channels-last")}
            | {"training step, bf16 over fp32"},
        ),
        ("fsd.draft", {"core-seconds", "prompt accuracy"}),
        ("fsd.plain_diffusers", {"same pictures", "fsd's adapter over plain diffusers"}),
    ],
)
def test_a_quick_run_writes_its_figures(script: str, figures: set[str], tmp_path: Path) -> None:
    record = run(script, tmp_path / "out.json")
    assert {figure["name"] for figure in record["figures"]} == figures
    # small sizes prove no goal
    assert {figure["met"] for figure in record["figures"]} == {None}


@pytest.mark.slow
def test_what_grows_is_measured_for_every_method_plan_and_size(tmp_path: Path) -> None:
    record = run("core.scale", tmp_path / "out.json")
    names = {figure["name"] for figure in record["figures"]}
    assert {"classes", "corsd, 40 classes", "ps-kd, 40 classes, memory", "rkd, 16 pixels"} <= names
    assert {
        f"plan, {p}, 2,000 images, s" for p in ("shuffled", "triplets", "class pairs", "last batch")
    } <= names
    assert {"adapt, 400 images, seconds", "adapt, 400 images, mib"} <= names
    goals = {figure["name"]: figure["goal"] for figure in record["figures"] if figure["goal"]}
    assert goals["classes"] == 1.25
    assert goals["plan, triplets, 2,000 images, s"] == 10
    assert goals["plan, triplets, 2,000 images, MiB"] == 1024


@pytest.mark.slow
def test_two_processes_are_measured(tmp_path: Path) -> None:
    """One method of three, since each is three processes; `make bench QUICK=1` runs them all."""
    record = run("core.weak_scaling", tmp_path / "out.json", "--only", "calib")
    (figure,) = record["figures"]
    assert (figure["name"], figure["goal_is"], figure["met"]) == ("calib", "at least", None)


@pytest.mark.slow
def test_runs_are_made_anew(tmp_path: Path) -> None:
    """Those that need nothing but the packages; calib's needs data."""
    record = run("core.accuracy_again", tmp_path / "out.json", "--only", "corsd", "fsd")
    named = ["corsd: accuracy", "fsd: prompt_accuracy", "fsd: view_consistency", "fsd: pairwise_distance"]
    assert [figure["name"] for figure in record["figures"]] == named
    assert record["not_measured"] == {}


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.core import accuracy_again

    return accuracy_again


@pytest.mark.parametrize(("name", "scale"), [("corsd", 1.0), ("calib", 1.0), ("fsd", 100.0)])
def test_a_run_made_anew_is_judged_by_its_distance_from_the_stored_one(again, name, scale, capsys) -> None:
    stored = again.stored_run(name)
    for measure, tolerance in again.TOLERANCE[name].items():
        for points, met in ((0.0, True), (-0.9 * tolerance, True), (1.1 * tolerance, False)):
            new = {**stored, measure: stored[measure] + points / scale}
            found = {figure["name"]: figure for figure in again.compared(name, new)}[f"{name}: {measure}"]
            assert found["difference"]["median"] == pytest.approx(abs(points))
            assert found["met"] is met


def test_a_run_without_its_data_is_not_measured_and_that_is_said(again, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(again.calib_plan.PAIRS["usps-mnist"], "data_root", tmp_path / "none")
    monkeypatch.setattr(
        sys, "argv", ["core.accuracy_again", "--out", str(tmp_path / "out.json"), "--only", "calib"]
    )
    again.main()
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["figures"] == []
    assert "USPS and MNIST have to be in" in record["not_measured"]["calib"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["corsd", "fsd"])
def test_the_rates_of_the_other_methods_are_read_from_their_runs(method, tmp_path: Path, monkeypatch) -> None:
    """One process is enough for that."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.core import weak_scaling

    data = weak_scaling.random_images(tmp_path / "data.npz", weak_scaling.images(quick=True))
    _, rate = weak_scaling.TRAINERS[method]
    assert rate(tmp_path, data, True, processes=1) > 0


def test_every_benchmark_is_run_by_a_test_and_listed(bench) -> None:
    """Run as a module or by its main(); a test that only reads a benchmark's constants does neither."""
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_benchmark*.py"))
    listed = set(re.findall(r"`(\w+/\w+)\.py`", (BENCHMARKS / "README.md").read_text().partition("\n\n|")[2]))
    takes_quick = {
        f"{file.parent.name}.{file.stem}"
        for file in BENCHMARKS.glob("*/*.py")
        if re.search(r'options\(__doc__\)|"--quick", action', file.read_text())
    }
    # What all share, and what tools/gpu.sh runs on a card.
    assert takes_quick - {"core.figures", "core.gpu"} == set(bench.SCRIPTS)
    run_alone = {"fsd.prior": "fsd_prior.main(", "fsd.diversity": "fsd_diversity.main("}
    run_alone = {"corsd.accuracy": '"benchmarks.corsd.accuracy"', **run_alone}
    assert [s for s in bench.SCRIPTS if f'"{s}"' not in tests and run_alone.get(s, "-") not in tests] == []
    assert {script.replace(".", "/") for script in bench.SCRIPTS} <= listed


def test_no_file_of_a_benchmark_begins_with_an_underscore() -> None:
    assert [file.name for file in BENCHMARKS.glob("*/_*.py")] == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (TORCHDISTILL / ".venv").exists(),
    reason="torchdistill's environment is gigabytes of downloads; make bench makes it",
)
@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("peers.torchdistill_rkd", "our RKD over theirs"),
        ("peers.torchdistill_accuracy", "CORSD in-batch over RKD"),
    ],
)
def test_torchdistill_is_measured(script: str, name: str, tmp_path: Path) -> None:
    record = run(script, tmp_path / "out.json")
    assert "error" not in record, record["error"]
    figures = {figure["name"]: figure for figure in record["figures"]}
    assert {"control", name} <= set(figures)
    if script == "peers.torchdistill_accuracy":
        # Their plain loop on our batches is our training.
        assert figures["control"]["difference"]["median"] == pytest.approx(0, abs=1e-5)


def test_the_nets_of_both_sides_need_only_what_torchdistills_environment_has() -> None:
    pinned = re.findall(r"^(\w+)==", (TORCHDISTILL / "requirements.txt").read_text(), re.M)
    sources = [
        ROOT / f"packages/{folder}/nets.py" for folder in ("corsd/src/corsd", "shared-core/src/shared_core")
    ]
    needed = {
        name for source in sources for name in re.findall(r"^(?:from|import) (\w+)", source.read_text(), re.M)
    }
    assert needed - sys.stdlib_module_names - {"shared_core"} <= set(pinned)


@pytest.mark.parametrize("script", ["peers.torchdistill_rkd", "peers.torchdistill_accuracy"])
def test_without_torchdistill_the_reason_is_recorded(script: str, tmp_path: Path) -> None:
    record = run(
        script, tmp_path / "out.json", "--environment", tmp_path / "new",
        UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert record["figures"] == []
    assert record["tried"][:3] == ["uv.sh", "pip", "sync"]
    assert "torchdistill==1.1.5" in record["versions"]
    assert record["error"]


def test_torchdistill_gets_the_torch_of_our_lock() -> None:
    locked = {p["name"]: p["version"] for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    pinned = dict(
        re.findall(r"^(torch|torchvision)==(\S+)", (TORCHDISTILL / "requirements.txt").read_text(), re.M)
    )
    assert pinned == {name: locked[name] for name in ("torch", "torchvision")}


def module(file: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def figures():
    return module(BENCHMARKS / "core/figures.py")


def test_variants_take_turns_and_the_warm_up_is_dropped(figures) -> None:
    order = []
    variants = {name: lambda n=name: order.append(n) or float(len(order)) for name in "abc"}
    values = figures.interleaved(variants, rounds=2, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert values == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


@pytest.mark.parametrize(
    ("goal", "options", "met"),
    [
        (2.0, {}, True),
        (1.9, {}, False),
        (2.0, {"at_least": True}, True),
        (2.1, {"at_least": True}, False),
        (1.9, {"quick": True}, None),
        (None, {}, None),
    ],
)
def test_the_median_of_the_rounds_ratios_is_judged(figures, goal, options, met, capsys) -> None:
    # The ratio of the medians would be 4 / 2 = 2 as well, had the second machine not stalled: 9 / 2.
    values = {"new": [4.0, 9.0, 40.0], "old": [2.0, 1.0, 20.0]}
    found = figures.ratio("f", "what", "s", values, "new", "old", goal=goal, **options)
    assert found["ratio"] == {"median": 2.0, "lower": 2.0, "upper": 5.5}
    assert found["values"]["new"]["median"] == 9.0
    assert (found["met"], found["repeats"]) == (met, 3)
    assert capsys.readouterr().out.startswith("f: ratio 2 (2 to 5.5)")


def test_a_difference_is_taken_round_by_round(figures) -> None:
    found = figures.difference("f", "what", "s", {"a": [3.0, 5.0], "b": [1.0, 1.0]}, "a", "b", goal=2.5)
    assert found["difference"]["median"] == 3.0
    assert found["met"] is False


@pytest.fixture
def bench():
    return module(ROOT / "tools" / "bench.py")


def written(path: Path, **ratios: tuple[float, float, float]) -> Path:
    """A result whose figures have these (lower, median, upper)."""
    figures = [
        {"name": name, "ratio": dict(zip(("lower", "median", "upper"), spread, strict=True))}
        for name, spread in ratios.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": figures}))
    return path


def test_new_figures_are_compared_with_the_stored_ones(bench, tmp_path: Path) -> None:
    stored = written(tmp_path / "stored", same=(1.0, 1.2, 1.3), slower=(1.0, 1.2, 1.3), gone=(1, 1, 1))
    new = written(tmp_path / "new", same=(1.3, 1.4, 1.5), slower=(1.31, 1.4, 1.5), young=(2, 2, 2))
    assert bench.compared(json.loads(stored.read_text()), json.loads(new.read_text())) == [
        "same: ratio 1.2 -> 1.4, quartiles overlap",
        "slower: ratio 1.2 -> 1.4, quartiles lie apart",
        "young: no stored ratio -> 2",
        "gone: stored, and not measured now",
    ]


@pytest.mark.parametrize("quick", [False, True])
def test_make_bench_compares_but_not_a_quick_run(bench, tmp_path: Path, monkeypatch, capfd, quick) -> None:
    new = written(tmp_path / "new", f=(3.0, 3.0, 3.0))
    written(tmp_path / "benchmarks/results/job.json", f=(1.0, 1.0, 1.0))
    script = f"import shutil, sys\nshutil.copy({str(new)!r}, sys.argv[sys.argv.index('--out') + 1])"
    (tmp_path / "benchmarks/core").mkdir()
    (tmp_path / "benchmarks/core/job.py").write_text(script)
    monkeypatch.setattr(bench, "SCRIPTS", ("core.job",))
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--quick"] * quick) == 0
    assert ("f: ratio 1 -> 3, quartiles lie apart" in capfd.readouterr().out) is not quick


def test_the_readme_says_what_the_files_say(monkeypatch) -> None:
    """Run `python -m benchmarks.core.readme` after a new measurement."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.core import readme

    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text
    with pytest.raises(ValueError, match="no place"):
        readme.filled("# Benchmarks\n")


def test_the_page_of_processes_says_what_was_measured() -> None:
    text = (ROOT / "docs/howto/processes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+) [^|]*\| (\d.*) \|$", text, re.M))
    for figure in json.loads((BENCHMARKS / "results/weak_scaling.json").read_text())["figures"]:
        measured = "{median:.2f} ({lower:.2f} to {upper:.2f})".format(**figure["ratio"])
        goal = "" if figure["met"] else ", below the goal by a hair"
        assert rows[figure["name"]] == measured + goal
        assert f"the goal on idle cores is {figure['goal']})" in text


def test_the_page_of_fsd_says_what_its_files_say(monkeypatch) -> None:
    """Run `python -m benchmarks.fsd.speed_page` after a new measurement."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.fsd import speed_page as fsd_page

    assert fsd_page.PAGE.read_text(encoding="utf-8") == fsd_page.page(fsd_page.RESULTS)


def test_a_row_of_the_page_of_fsd(figures, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.fsd import speed_page as fsd_page

    slow = figures.ratio("step", "new over old", "s", {"a": [3.0, 3.0], "b": [1.0, 1.0]}, "a", "b", goal=2.0)
    row = fsd_page.row(slow, {"step": [2.5, 3.25]})
    assert row == "| step: new over old | 3 (3 to 3) [2.500, 3.250] | at most 2 | **missed** |"
    once = figures.difference("peak", "of it", "GB", {"a": [1.5], "b": [0.5]}, "a", "b")
    assert fsd_page.row(once, {}) == "| peak: of it | 1 GB |  |  |"
