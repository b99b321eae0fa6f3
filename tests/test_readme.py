"""What the README promises: its example trains as it stands, and its links lead somewhere, as do CONTRIBUTING's."""

import os
import re
import subprocess
import sys

import pytest
from rerun import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_it_lists_the_lessons():
    linked = re.findall(r"\]\(notebooks/([\w-]+\.ipynb)\)", README)
    assert linked == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_its_links_lead_somewhere():
    places = [place for place in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in place]
    assert places and not [place for place in places if not (ROOT / place).exists()]


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"\b(?:lessons_lib|tests|\.ci)/[\w/]*\w(?:\.py)?", text)
    assert len(named) > 10 and not [place for place in named if not (ROOT / place).exists()]


@pytest.mark.parametrize(("how", "ranks"), [([], 4), (TORCHRUN, 2)], ids=["python", "torchrun"])
def test_its_example_trains(how, ranks, tmp_path):
    if how and sys.platform == "win32":
        pytest.skip("torchrun needs libuv, which torch's Windows wheels lack")
    script = tmp_path / "train.py"
    script.write_text(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), encoding="utf-8")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *how, str(script)], capture_output=True, text=True, timeout=120, env=one_thread
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"(\d) ranks, accuracy (0\.\d\d)", done.stdout)
    assert int(said[1]) == ranks and float(said[2]) > 0.9
