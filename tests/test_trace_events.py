"""A trace is read back from the file that a viewer opens: the same times, ranks and messages."""

import json

import pytest
import torch

from lessons_lib import Links, launch
from lessons_lib.cost import Cluster, Model, Plan, timeline
from lessons_lib.schedules import ring, simulate
from lessons_lib.trace import Span, Trace


def saved(trace, path):
    """{phase: events} of the file that `trace` writes."""
    trace.save(path)
    file, phases = json.loads(path.read_text(encoding="utf-8")), {}
    assert file["otherData"] == {"source": trace.source}
    for event in file["traceEvents"]:
        phases.setdefault(event["ph"], []).append(event)
    return phases


def spans_of(events):
    """(rank, kind, start in s, end in s) of each "X", to a nanosecond."""
    return sorted(
        (each["pid"], each["cat"], round(each["ts"] / 1e6, 9), round((each["ts"] + each["dur"]) / 1e6, 9))
        for each in events
    )


def check(trace, path):
    phases = saved(trace, path)
    expected = sorted((s.rank, s.kind, round(s.start_s, 9), round(s.end_s, 9)) for s in trace.spans)
    assert [each[:2] for each in spans_of(phases["X"])] == [each[:2] for each in expected]
    for ours, theirs in zip(spans_of(phases["X"]), expected, strict=True):
        assert ours[2:] == pytest.approx(theirs[2:], abs=2e-9)
    named = {(each["pid"], each["args"]["name"]) for each in phases["M"] if each["name"] == "process_name"}
    assert named == {(span.rank, f"rank {span.rank}") for span in trace.spans}
    return phases


@pytest.mark.parametrize("reduce_Bps", [float("inf"), 1e9])
def test_a_simulated_ring_has_an_arrow_for_each_message(tmp_path, reduce_Bps):
    trace = simulate(ring(4), 1e6, Links(1e-3, 1e9, reduce_Bps)).trace
    phases = check(trace, tmp_path / "ring.json")
    starts, ends = ({each["id"]: each for each in phases[phase]} for phase in "sf")
    assert len(starts) == 2 * 3 * 4 and starts.keys() == ends.keys()
    assert all((starts[key]["pid"] + 1) % 4 == ends[key]["pid"] for key in starts)
    assert all(ends[key]["ts"] - starts[key]["ts"] == pytest.approx(1e3 + 250) for key in starts)


def test_a_measured_run_has_an_arrow_for_each_message(tmp_path):
    def fn(comm):
        comm.all_reduce(torch.ones(100))
        if comm.rank == 0:
            comm.send(torch.ones(3), 2)
        elif comm.rank == 2:
            comm.recv(torch.ones(3), 0)

    trace = launch(fn, world_size=3, trace=True, algorithm="ring").trace
    phases = check(trace, tmp_path / "run.json")
    ends = {each["id"]: each for each in phases["f"]}
    arrows = [(each["pid"], ends[each["id"]]["pid"]) for each in phases["s"]]
    assert len(arrows) == sum(span.kind == "send" for span in trace.spans)
    assert sorted(set(arrows)) == [(0, 1), (0, 2), (1, 2), (2, 0)]
    assert all(ends[each["id"]]["ts"] >= each["ts"] for each in phases["s"])


def test_a_predicted_pipeline_names_its_stages(tmp_path):
    cluster = Cluster(4, 1e12, 1e12, 1e11, Links(1e-6, 1e9))
    played = timeline(Model(4, 64, 4, 100, 32), cluster, Plan(4, pp=4))
    phases = check(played.trace, tmp_path / "pipeline.json")
    assert {"forward 0.0", "backward 3.3"} <= {each["name"] for each in phases["X"]}


def test_what_is_known_of_a_span_is_kept(tmp_path):
    trace = Trace([Span(3, "wait", 1.0, 1.5, 2, 8, "recv(src=2)", "tp")])
    (event,) = saved(trace, tmp_path / "run.json")["X"]
    assert event.pop("args") == {"peer": 2, "size_bytes": 8, "group": "tp"}
    assert event == {"ph": "X", "pid": 3, "tid": 0, "name": "recv(src=2)", "cat": "wait", "ts": 1e6, "dur": 5e5}


def test_an_empty_trace_is_a_file_too(tmp_path):
    assert saved(Trace(), tmp_path / "run.json") == {}
