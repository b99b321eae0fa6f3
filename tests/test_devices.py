"""Probing, measuring and dispatching, also of machines that aren't this one; and `python -m lessons_lib`."""

import getpass
import json
import math
import os
import platform
import sys
import time
import types

import pytest
import torch

from lessons_lib import __main__, devices
from lessons_lib.devices import Device, Measurement, Work, cgroup_limits, dispatch, measure, probe

GB = 10**9


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {
    "proc/self/cgroup": "5:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, (None, None)),
        (V2, (None, None)),
        ({**V2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, (1.5, None)),
        ({**V2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, (None, None)),
        ({**V2, "sys/fs/cgroup/a/memory.max": "2000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, (None, 2000)),
        ({**V2, "sys/fs/cgroup/a/memory.max": "2000\n", "sys/fs/cgroup/a/b/memory.max": "500\n"}, (None, 500)),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "7\n"}, (None, 7)),
        ({"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/memory.max": "7\n"}, (None, 7)),
        ({**V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, (None, None)),
        ({**V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n"}, (0.5, None)),
        ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, (None, None)),
        ({**V1, "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "4096\n"}, (None, 4096)),
    ],
)
def test_limits_of_the_container(tmp_path, files, expected):
    assert cgroup_limits(write(tmp_path, files)) == expected


@pytest.mark.parametrize("quota, cores", [("10000 100000", 1), ("150000 100000", 2), ("6400000 100000", 8)])
def test_usable_cores_are_whole_and_within_affinity_and_quota(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert devices.usable_cores(write(tmp_path, {**V2, "sys/fs/cgroup/cpu.max": quota})) == cores


def test_probe_finds_the_cpu_first():
    cpu = probe()[0]
    assert cpu.name == "cpu" and cpu.description
    assert 0 < cpu.usable_cores <= cpu.logical_cores
    assert cpu.memory_bytes > GB / 2
    assert cpu.memory_limit_bytes is None or cpu.memory_limit_bytes < cpu.memory_bytes


@pytest.fixture
def two_accelerators(monkeypatch):
    """Pretend that torch found two devices of the kind it is given, whose backend module has these attributes."""

    def pretend(kind, **attributes):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        found = types.SimpleNamespace(type=kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
        monkeypatch.setattr(torch, "get_device_module", lambda kind: types.SimpleNamespace(**attributes))

    return pretend


def test_probe_of_accelerators(two_accelerators):
    properties = [types.SimpleNamespace(name=f"Chip {i}", total_memory=(i + 1) * GB) for i in range(2)]
    two_accelerators("npu", get_device_properties=properties.__getitem__)
    assert probe()[1:] == [Device("npu:0", "Chip 0", GB), Device("npu:1", "Chip 1", 2 * GB)]
    assert "Chip 0, Chip 1, torch" in devices.machine_line()
    assert "npu:1          Chip 1, 2.0 GB memory" in devices.report()
    two_accelerators("mps", recommended_max_memory=lambda: 5 * GB)
    assert probe()[1] == Device("mps:0", "mps", 5 * GB)
    two_accelerators("new")
    assert "memory, 2 × new, torch" in devices.machine_line()
    assert probe()[2] == Device("new:1", "new", None)
    assert "new:1          new\n" in devices.report()


def test_measure_the_cpu():
    start = time.perf_counter()
    m = measure("cpu")
    assert time.perf_counter() - start < 10
    assert 1e8 < m.flops_per_s < 1e15 and 1e7 < m.memory_Bps < 1e13 and 1e-8 < m.launch_s < 1e-2
    assert m.to_device_Bps == m.from_device_Bps == math.inf and m.round_trip_s == 0
    assert "FLOP/s, memory" in str(m)
    assert measure(probe()[0], dtype=torch.float64).device == "cpu"


def test_transfers_are_measured_with_copies_and_a_round_trip(monkeypatch):
    from lessons_lib.devices.measure import _transfer_speeds

    assert all(speed > 0 for speed in _transfer_speeds(torch.device("cpu"), 0.0))
    assert "12.3 GB/s in and 500 MB/s out, 20 µs" in str(Measurement("x", 1e9, 1e9, 1e-6, 1.23e10, 5e8, 2e-5))


def test_measure_refuses_a_device_that_is_not_there():
    for name in ("meta", "cuda:99", "abacus"):
        with pytest.raises(ValueError, match=rf"device='{name}': one of cpu.* is needed"):
            measure(name)


CPU = Measurement("cpu", flops_per_s=1e11, memory_Bps=1e10, launch_s=1e-6)
GPU = Measurement("gpu", 1e13, 1e12, 5e-6, to_device_Bps=1e10, from_device_Bps=5e9, round_trip_s=5e-5)


def product(n):
    return Work(flops=2 * n**3, bytes_in=8 * n**2, bytes_out=4 * n**2, bytes_touched=12 * n**2)


def test_small_work_goes_to_the_cpu_and_large_work_to_the_accelerator():
    chosen = [dispatch(product(n), [CPU, GPU]).device for n in (16, 64, 1024, 4096)]
    assert chosen == ["cpu", "cpu", "gpu", "gpu"]


def test_transfer_decides_when_there_is_little_to_compute():
    work = {"flops": 1e9, "bytes_touched": 1e9}
    assert dispatch(Work(**work), [CPU, GPU]).device == "gpu"
    assert dispatch(Work(**work, bytes_in=1e9), [CPU, GPU]).device == "cpu"


def test_predicted_times_add_up():
    decision = dispatch(Work(1e9, 1e7, 1e6, 1e10, num_launches=10), [CPU, GPU])
    assert decision.time_s == pytest.approx(
        {"gpu": 5e-5 + 1e7 / 1e10 + 1e6 / 5e9 + 10 * 5e-6 + 1e10 / 1e12, "cpu": 10 * 1e-6 + 1.0}
    )
    first, second = decision.predictions
    assert first.device == decision.device == "gpu" and second.transfer_s == 0
    assert str(decision).splitlines()[-1] == "gpu finishes first"
    assert dispatch(Work(), [CPU, Measurement("twin", 1e11, 1e10, 1e-6)]).device == "cpu"


def predicted_and_measured():
    """Seconds of twenty products of matrices."""
    a, b = torch.randn(2, 512, 512)
    m = measure("cpu")
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    took_s = time.perf_counter() - start
    return dispatch(Work(flops=20 * 2 * 512**3, num_launches=20), [m]).time_s["cpu"], took_s


def test_prediction_is_near_the_truth_on_this_cpu():
    # What else the machine does may fall into the one measurement and not into the other: once in five it does not.
    pairs = (predicted_and_measured() for _ in range(5))
    assert any(predicted_s / 20 < took_s < predicted_s * 20 for predicted_s, took_s in pairs)


def test_dispatch_errors():
    with pytest.raises(ValueError, match="flops=-1: a number of at least 0 is needed"):
        Work(flops=-1)
    with pytest.raises(ValueError, match="bytes_in"):
        Work(bytes_in=math.nan)
    with pytest.raises(ValueError, match="at least one device"):
        dispatch(Work(), [])


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator on this machine")
def test_a_real_accelerator():
    name = probe()[1].name
    m = measure(name)
    assert 0 < m.to_device_Bps < math.inf and m.round_trip_s > 0
    assert dispatch(product(16), [measure("cpu"), m]).device == "cpu"
    x, y = (torch.randn(64, 64, device=name) for _ in range(2))
    torch.testing.assert_close((x @ y).cpu(), x.cpu() @ y.cpu(), rtol=1e-2, atol=1e-2)


def test_machine_line_and_report_say_what_is_there_and_name_nobody(monkeypatch, two_accelerators):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    line, text = devices.machine_line(), devices.report([CPU])
    assert "\n" not in line and "core" in line and "no accelerator, torch 2." in line
    for word in ("torch", "cores", "memory", "accelerator", "lessons use", "shared_memory", "cpu: 100 GFLOP/s"):
        assert word in text
    private = [platform.node(), getpass.getuser(), os.path.expanduser("~"), os.getcwd()]
    for word in private:
        assert len(word) < 4 or (word not in line and word not in text)


def test_machine_line_tells_limits(monkeypatch):
    small = Device("cpu", "Some CPU", 24 * GB, 8, 4, 1.5, 2 * GB, 64 * 10**6)
    monkeypatch.setattr(sys.modules["lessons_lib.devices.report"], "probe", lambda: [small])
    start = "1.5 of 8 cores, 24 GB memory (limit 2.0 GB), no accelerator, torch 2."
    assert devices.machine_line().startswith(start)
    assert "24 GB, of which the container may use 2.0 GB" in devices.report()
    assert "64 MB as a file system" in devices.report()


def notebook(path, source):
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": source}]}))


def test_lessons_are_read_from_the_notebooks(tmp_path):
    notebook(
        tmp_path / "07-one-device.ipynb",
        [
            "# One device\n",
            "\n",
            "**Which device?** *Time:* 30 minutes.\n",
            "\n",
            "*Your path, Part 2 · One:*\n",
            "**07**",
        ],
    )
    notebook(tmp_path / "07b-more.ipynb", ["# More\n", "**Question:** *Which batch?* Bring 30 minutes."])
    notebook(tmp_path / "01-descent.ipynb", ["# Descent\n", "No question here."])
    notebook(tmp_path / "scratch.ipynb", ["# Not a lesson"])
    assert __main__.lessons(tmp_path) == [
        ("01-descent", "Descent", "", 0, ""),
        ("07-one-device", "One device", "Which device?", 30, "Part 2 · One"),
        ("07b-more", "More", "Which batch?", 0, ""),
    ]
    assert __main__.lessons(tmp_path / "missing") == []


def test_the_command_prints_the_report_and_the_lessons(capsys, monkeypatch):
    start = __main__.Lesson("00-start-here", "Start", "Can it be a cluster?", 40, "")
    losses = __main__.Lesson("02-losses", "Losses", "", 90, "Part 1 · Descent")
    monkeypatch.setattr(__main__, "lessons", lambda folder: [start, losses])
    assert __main__.main([]) == 0
    out = capsys.readouterr().out
    assert "measured       cpu: " in out and "\nlessons, 2 hours in all: jupyter lab notebooks/00-start-" in out
    assert (
        "  00-start-here                 40 min  Can it be a cluster?\nPart 1 · Descent, 90 minutes\n  02-losses" in out
    )
    monkeypatch.setattr(__main__, "lessons", lambda folder: [])
    __main__.main([])
    assert "needs a checkout" in capsys.readouterr().out


def test_bench_is_imported_only_when_asked_for(monkeypatch, capsys):
    called = []
    fake = types.ModuleType("lessons_lib.bench")
    fake.main = lambda quick: called.append(quick)
    monkeypatch.setitem(sys.modules, "lessons_lib.bench", fake)
    monkeypatch.setattr("lessons_lib.bench", fake, raising=False)
    __main__.main(["bench", "--quick"])
    __main__.main(["bench"])
    assert called == [True, False]
    with pytest.raises(SystemExit):
        __main__.main(["dance"])
    assert "invalid choice: 'dance'" in capsys.readouterr().err
