"""A software bill of materials (CycloneDX) for a wheel: the wheel with its hash, and what uv.lock tested it with.

python tools/sbom.py dist/corsd-0.1.0-py3-none-any.whl dist-sbom/
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sbom(wheel: Path) -> dict:
    """The record of one wheel; every version is that of the lock file, no development tool is among them."""
    name, version = wheel.name.split("-")[:2]
    distribution = name.replace("_", "-")
    command = [
        *(
            str(ROOT / "tools/uv.sh"),
            "export",
            "--quiet",
            "--frozen",
            "--package",
            distribution,
            "--no-default-groups",
        ),
        *("--format", "cyclonedx1.5", "--preview-features", "sbom-export"),
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"$ {' '.join(command)}\n{done.stderr}")
    record = json.loads(done.stdout)
    content = wheel.read_bytes()
    own = record["metadata"]["component"] | {"type": "library", "name": distribution, "version": version}
    own |= {
        "purl": f"pkg:pypi/{distribution}@{version}?file_name={wheel.name}",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
    }
    record["metadata"]["component"] = own
    return record


def main(wheel: Path, folder: Path) -> None:
    """Write FOLDER/WHEEL.cdx.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{wheel.name.removesuffix('.whl')}.cdx.json"
    record = sbom(wheel)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{len(record['components'])} components  {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
