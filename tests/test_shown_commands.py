"""Commands, scripts and manifests that the README and the lessons show: read by bash and YAML, not run."""

import pathlib
import re
import subprocess

import nbformat
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent


def blocks():
    """(file, language, text) of every fenced block of bash or YAML."""
    prose = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = nbformat.read(path, 4).cells
        prose[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    fence = re.compile(r"^```(bash|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(name, *found) for name, text in prose.items() for found in fence.findall(text)]


@pytest.mark.parametrize(("name", "language", "text"), blocks())
def test_it_can_be_read(name, language, text):
    if language == "bash":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "#SBATCH" not in text or text.startswith("#!/bin/bash\n")  # Slurm refuses a script without
    else:
        job = yaml.safe_load(text)
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(job)
