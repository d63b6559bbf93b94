"""report.html of a run."""

import json
from pathlib import Path

import yaml
from shared_core.run.folder import RunFolder
from shared_core.run.report import cards, heading, table, write_report


def report(out: Path) -> Path:
    """Write ``out/report.html`` from what the run left there."""
    folder = RunFolder(out)
    result = json.loads(folder.result.read_text(encoding="utf-8"))
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    sections = [
        cards({"accuracy": f"{result['accuracy_mean']:.2f} %"}),
        heading("Settings"),
        table([{"setting": name, "value": str(value)} for name, value in config.items()]),
    ]
    write_report(folder.report, f"{result['method']} on {result['dataset']}", sections)
    return folder.report
