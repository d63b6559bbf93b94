import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
SOURCE = Path(__file__).parents[1] / "src" / "shared_core"


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S).group(1)
    names = {}
    # One process: the lambda of the example does not reach workers that start anew.
    exec(code.replace("workers=2", "workers=0"), names)  # noqa: S102
    assert names["hidden"].shape == (64, 32)
    assert names["loss"].isfinite()


def test_every_module_is_in_the_table():
    table = README.read_text(encoding="utf-8").split("## What is here")[1].split("##")[0]
    listed = set(
        re.findall(r"`((?:ops|data|run)\.\w+|nets|hub|testing|from_file|fitting_weights|onnx_files)`", table)
    )
    present = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert listed == present
