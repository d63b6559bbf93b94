"""Run the demo of each method, or of the one that is named, and show the reports on one page.

    python tools/demo.py [corsd]

A method's demo is one call of its own command, which leaves report.html and result.json in the folder it is
given.  What stood in runs/demo/METHOD before is replaced.
"""

import shutil
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

FOLDER = Path("runs/demo")
DEMOS = {  # distribution folder: arguments of the method's command, up to --out
    "corsd": ["corsd", "train", "--preset", "digits"],
    "fsd": ["fsd", "generate", "--preset", "embedded"],
    "calib": ["calib", "adapt", "--preset", "digits"],
}
WHAT = {
    "corsd": "Relational self-distillation: the same network, trained better, against its controls.",
    "fsd": "Flow score distillation: a prompt, four seeds, four objects; with SDS nearly one.",
    "calib": "Light-weight calibrator: a frozen classifier on a domain it was not trained on.",
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demos</title>
<style>
:root {{ color-scheme: light dark; --accent: #2b5f75 }}
@media (prefers-color-scheme: dark) {{ :root {{ --accent: #8dc3d8 }} }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem }}
h2 {{ margin: 2.5rem 0 0 }} h2 a {{ color: var(--accent) }} p {{ margin: 0 0 1rem }}
iframe {{ width: 100%; height: 44rem; border: 1px solid #8884; border-radius: 8px }}
</style>
<h1>Demos</h1>
{body}
</html>
"""


def has_command(method: str) -> bool:
    """Whether the installed package brings a command of this name: only then is there something to show."""
    return bool(entry_points(group="console_scripts", name=method))


def run(method: str) -> int:
    """Train the method's embedded preset into runs/demo/METHOD; the command's exit code."""
    out = FOLDER / method
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    code = subprocess.run([Path(sys.executable).parent / method, *DEMOS[method][1:], "--out", out]).returncode
    missing = [name for name in ("report.html", "result.json") if not (out / name).is_file()]
    if code:
        print(f"{method}: the demo failed with exit code {code}", file=sys.stderr)
    elif missing:
        print(f"{method}: the demo left no {' and no '.join(missing)} in {out}", file=sys.stderr)
        code = 1
    else:
        print(f"{method}: {time.perf_counter() - begin:.0f} s, open {out / 'report.html'}")
    return code


def index(folder: Path) -> str:
    """The page that shows every report in the folder, each in a frame, and leads to it."""
    sections = [
        f'<h2><a href="{method}/report.html">{method}</a></h2><p>{what}</p>'
        f'<iframe src="{method}/report.html" title="report of {method}"></iframe>'
        for method, what in WHAT.items()
        if (folder / method / "report.html").is_file()
    ]
    return PAGE.format(body="\n".join(sections) or "<p>No report yet.</p>")


def main(names: list[str]) -> int:
    """Run the named demos (all without a name) and write the page; 1 if one failed."""
    failed = False
    for method in [name for name in DEMOS if not names or name in names]:
        if has_command(method):
            failed |= run(method) != 0
        else:
            print(f"{method}: nothing to show yet, the package holds no method so far")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "index.html").write_text(index(FOLDER), encoding="utf-8")
    print(f"All reports: {FOLDER / 'index.html'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
