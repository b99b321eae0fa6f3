"""Two machines with a cable of 200 Mbit/s: what trains on one trains on both, and goes on where one of them fails."""

import re
import subprocess
from contextlib import ExitStack
from threading import Timer

import pytest
import torch
from machines import ADDRESSES, C10D, STATIC, TIMEOUT_S, Machines, meeting
from rerun import ROOT
from torch import nn
from two_machines_job import NUM_STEPS, SCHEDULES, data, gpt, loss_of

from lessons_lib import connect
from lessons_lib.schedules import chunk_bounds, count

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
JOB = ROOT / "tests" / "two_machines_job.py"
NUMEL = 2_000_003  # of a tensor, which no number of chunks divides


@pytest.fixture(scope="module")
def machines(request, tmp_path_factory):
    refuse = pytest.fail if request.config.option.two_machines else pytest.skip
    if Machines.lacks():
        refuse(Machines.lacks())
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Machines(tmp_path_factory.mktemp("machines")))
        except subprocess.CalledProcessError as error:
            refuse(f"the system refuses {' '.join(error.cmd)}: {error.stderr}")
        yield made


def passed(ended):
    assert [status for status, _, _ in ended] == [0, 0], ended
    return ended


def test_the_example_trains_on_two_machines_whose_names_lead_to_themselves(machines, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(EXAMPLE.replace("if comm.rank == 0:", "if True:").replace("{right:.2f}", "{right:.6f}\\n"))
    ended = passed(machines.run(STATIC, script))
    results = [re.findall(r"4 ranks, accuracy (0\.\d+)", out) for _, out, _ in ended]
    assert results[0] == results[1] and len(set(results[0])) == 1 and len(results[0]) == 2
    for address, (_, _, err) in zip(ADDRESSES, ended, strict=True):
        assert err.count("connect(): gloo uses") == 1 and f"({address})" in err


# --- what the cable carries ------------------------------------------------------------------------------------------


def over_the_cable(schedule, src_host):
    """Bytes that the two ranks of a machine send to those of the other."""
    sizes = [4 * (stop - start) for start, stop in chunk_bounds(NUMEL, schedule.num_chunks)]
    messages = [message for messages in schedule.rounds for message in messages]
    return sum(sizes[m.chunk] for m in messages if m.src // 2 == src_host != m.dst // 2)


@pytest.mark.parametrize(("name", "schedule"), SCHEDULES.items())
def test_the_shaped_cable_carries_what_the_schedule_says_and_little_else(machines, name, schedule):
    before = machines.shapers()
    ended = passed(machines.run(STATIC, JOB, "all_reduce", name, NUMEL))
    for host, (first, last) in enumerate(zip(before, machines.shapers(), strict=True)):
        expected = over_the_cable(schedule, host)
        assert expected <= last["bytes"] - first["bytes"] < 1.1 * expected + 200_000  # headers, and how torchrun meets
        assert last["overlimits"] > first["overlimits"]  # packets came faster than the shaper let them through
        sent = map(int, re.findall(r"sent (\d+) bytes", ended[host][1]))
        assert sum(sent) == sum(count(schedule, NUMEL).bytes_sent[2 * host : 2 * host + 2])


# --- a pipeline along one axis, copies along the other ---------------------------------------------------------------


def trained(machines, tmp_path, rendezvous, dies="nobody", words="--nnodes=2"):
    """What the ranks say, and their weights at the end."""
    ended = passed(machines.run(rendezvous, JOB, "train", tmp_path, dies, words=words))
    found = sorted(re.findall(r"rank (\d) began at (\d), start (\d)", "".join(out for _, out, _ in ended)))
    return found, [torch.load(tmp_path / f"end-{rank}.pt", weights_only=True) for rank in range(4)]


@pytest.fixture(scope="module")
def undisturbed(machines, tmp_path_factory):
    found, weights = trained(machines, tmp_path_factory.mktemp("undisturbed"), STATIC)
    assert found == [(str(rank), "0", "0") for rank in range(4)]
    return weights


def one_process():
    model = gpt()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(NUM_STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
    return model


def test_a_pipeline_over_two_machines_with_copies_on_each_equals_one_process(undisturbed):
    expected = dict(nn.Sequential(*one_process().stages()).named_parameters())
    assert set(undisturbed[0]) | set(undisturbed[2]) == set(expected) and not set(undisturbed[0]) & set(undisturbed[2])
    for weights in undisturbed:
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rendezvous", [STATIC, C10D])
def test_a_rank_of_one_machine_is_killed_and_both_go_on_from_the_checkpoint(
    machines, undisturbed, tmp_path, rendezvous
):
    found, weights = trained(machines, tmp_path, rendezvous, "3", words="--nnodes=2 --max-restarts=3")
    assert all(first == "3" for _, first, _ in found)
    assert len({start for _, _, start in found}) == 1 and found[0][2] != "0"
    for mine, theirs in zip(weights, undisturbed, strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_machine_is_lost_and_the_other_goes_on_with_its_own_ranks(machines, tmp_path):
    words = "--nnodes=1:2 --max-restarts=3 {}".format
    more = ",last_call_timeout=15,keep_alive_interval=1"  # how long to wait for a second machine, and for a silent one
    first, lost = (machines.start(n, words(meeting(C10D, n, more)), JOB, "train_copies", tmp_path) for n in (0, 1))
    watch = Timer(TIMEOUT_S, machines.kill, [1])
    watch.start()
    try:
        assert "step 3" in lost.stdout.readline()
        machines.cut()
        machines.kill(1)
        out, err = first.communicate(timeout=TIMEOUT_S)
        assert first.returncode == 0 and machines.pids() == [[], []], (out, err)
    finally:
        watch.cancel()
        machines.end()
        machines.cut("up")
    assert sorted(re.findall("rank .*", out)) == [f"rank {rank} of 2 began at 3" for rank in (0, 1)]
    alone = one_process()
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / f"end-{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("master", ["127.0.0.1", "nowhere.invalid"])
def test_an_address_that_leads_to_no_other_machine_is_refused(master, monkeypatch):
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": master, "MASTER_PORT": "29500"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(RuntimeError, match=f"MASTER_ADDR={master}: an address"):
        connect()
