"""Two machines, as two network namespaces: the README's example trains where host names lead nowhere."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from rerun import ROOT

from lessons_lib import connect

ADDRESSES = ("192.0.2.1", "192.0.2.2")  # a range kept for examples; nothing of it leaves the two namespaces
SCRIPT = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines(request):
    """The names of two namespaces with one cable between them."""
    able = shutil.which("ip") and shutil.which("unshare") and os.geteuid() == 0
    names = [f"lesson-{os.getpid()}-{number}" for number in (0, 1)]
    cables = [f"l{os.getpid()}-{number}" for number in (0, 1)]
    try:
        if not able:
            (pytest.fail if request.config.option.two_machines else pytest.skip)("needs root, ip and unshare")
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", cables[0], "type", "veth", "peer", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
        yield names
    finally:
        for name in names if able else ():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_the_example_trains_on_two_machines_whose_names_lead_to_themselves(machines, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("if comm.rank == 0:", "if True:").replace("{right:.2f}", "{right:.6f}\\n"))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost laptop\n")
    inside = f"hostname laptop && mount --bind {tmp_path}/hosts /etc/hosts && exec "
    running = []
    for number, machine in enumerate(machines):
        torchrun = f"{sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=2 --node-rank={number} "
        torchrun += f"--master-addr={ADDRESSES[0]} --master-port=29500 {script}"
        command = ["ip", "netns", "exec", machine, "unshare", "--uts", "--mount", "sh", "-c", inside + torchrun]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
    try:
        said = [process.communicate(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    results = [re.findall(r"4 ranks, accuracy (0\.\d+)", out) for out, _ in said]
    assert results[0] == results[1] and len(set(results[0])) == 1 and len(results[0]) == 2
    for number, (_, err) in enumerate(said):
        assert err.count("connect(): gloo uses") == 1 and f"({ADDRESSES[number]})" in err
    assert [ip("netns", "pids", machine) for machine in machines] == ["", ""]


@pytest.mark.parametrize("master", ["127.0.0.1", "nowhere.invalid"])
def test_an_address_that_leads_to_no_other_machine_is_refused(master, monkeypatch):
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": master, "MASTER_PORT": "29500"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(RuntimeError, match=f"MASTER_ADDR={master}: an address"):
        connect()
