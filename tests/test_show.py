"""Figures and controls: what they show, that they stay whole without a kernel, and what they say to bad input."""

import base64
import re
import threading
from html.parser import HTMLParser

import ipywidgets
import nbconvert
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lessons_lib import autograd, show
from lessons_lib.schedules import (
    Links,
    Message,
    Schedule,
    count,
    direct,
    gpipe,
    ring,
    ring_all_gather,
    simulate,
    star,
    tree_broadcast,
    zbv,
)
from lessons_lib.show.labels import spread
from lessons_lib.show.schedule import states
from lessons_lib.show.style import text_colour
from lessons_lib.trace import Ledger, Span, Trace

PNG = b"\x89PNG\r\n\x1a\n"
VIEW = "application/vnd.jupyter.widget-view+json"


def texts(picture):
    """Every text that is drawn, without the numbers along the axes."""
    axes = picture.figure.axes
    numbers = {label for ax in axes for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels(which="both")}
    hidden = {text for ax in axes if not ax.get_visible() for text in ax.findobj(Text)}
    hidden |= {text for text in picture.figure.findobj(Text) if not text.get_visible()}
    return [t for t in picture.figure.findobj(Text) if t.get_text().strip() and t not in numbers | hidden]


def words(picture):
    return {text.get_text() for text in picture.figure.findobj(Text)}


def bowl(x, y):
    return x**2 + 10 * y**2


def slow_links():
    return Links(latency_s=1e-3, bandwidth_Bps=1e8, reduce_Bps=1e9)


def two_ranks(source="measured"):
    spans = [
        Span(0, "compute", 3.0, 3.010, label="forward"),
        Span(0, "send", 3.010, 3.014, 1, 400),
        Span(1, "wait", 3.000, 3.010, 0),
        Span(1, "recv", 3.010, 3.014, 0, 400),
        Span(1, "add", 3.014, 3.015, 0, 400),
    ]
    return Trace(spans, source)


def long_run():
    names = ("load", "forward", "backward", "step", "save")
    return Trace([Span(0, "compute", k / 100, (k + 1) / 100, label=name) for k, name in enumerate(names)], "measured")


def graph_of_two_paths():
    """L = w · tanh(w), and its graph after the loss has handed its gradient on."""
    w = autograd.Tensor(torch.tensor(-0.5), requires_grad=True)
    loss = w * w.tanh()
    loss.grad = torch.ones(())
    return show.graph(loss, {w: "w", loss: "L"}, done=[loss])


def pipelines_of(num_micro_batches):
    costs_s = {"forward": 1e-3, "backward": 2e-3, "input": 1e-3, "weight": 1e-3}
    programs = (gpipe(2, num_micro_batches), zbv(2, num_micro_batches))
    return {program.name: simulate(program, cost_s=costs_s).trace for program in programs}


LOADED = [("loader", 1.0, 2.0), ("loader", 2.0, 3.0), ("device", 2.0, 2.5)]
PICTURES = {
    "lines": lambda: show.lines({"ring": [1, 2, 3], "star": ([0, 1], [4, 5])}, "step", "time (ms)", guess=2),
    "lines named inside": lambda: show.lines({"ring": ([9, 1], [1, 9])}, "x", "y", names_at={"ring": (6, 6)}),
    "log lines": lambda: show.lines({"ring": ([2, 4, 8], [1, 10, 1e6])}, "ranks", "bytes", logx=True, logy=True),
    "lines with points": lambda: show.lines(
        {"star": [1, 2, 3], "ring": [1, 1, 1]}, "ranks", "time (ms)", points={"star": ([0, 2], [1.2, 2.5])}
    ),
    "bars": lambda: show.bars({"ring": 3.0, "star": 12.0}, "time (ms)", guess=9, notes={"star": "12 ms"}),
    "bars in parts": lambda: show.bars(
        {"gloo": {"latency": 1, "bytes": 3}, "memory": {"latency": 0.1, "bytes": 1}}, "time (ms)", "Two wires"
    ),
    "graph": graph_of_two_paths,
    "panels": lambda: show.panels([("digit", np.eye(4)), ("map", -np.eye(2))], "a digit and a map"),
    "contours": lambda: show.contours(bowl, {"SGD": [(2, 1), (1, 0)]}, (-3, 3), (-2, 2), minimum=(0, 0)),
    "timeline": lambda: show.timeline(two_ranks(), guess=0.02),
    "simulated timeline": lambda: show.timeline(simulate(ring(16), 1e6, slow_links()).trace),
    "timelines": lambda: show.timelines(
        {"a": two_ranks(), "b": long_run()}, guess={"b": 0.05}, marks={"a": {"rule": 0.02}}
    ),
    "pipelines": lambda: show.pipelines(pipelines_of(4), guess={"GPipe": 0.03}),
    "lanes": lambda: show.lanes({"a": LOADED, "b": LOADED[:1]}, guess={"a": 3.0}),
    "owners": lambda: show.owners(np.array([[0.0, 0.0, 2.0], [2.0, np.nan, 7.0]]), "sample", "shard", "Whose?"),
    "ledger": lambda: show.ledger({"star": count(star(4), 1000), "ring": count(ring(4), 1000)}, guess=5000),
    "history": lambda: show.history({"1 rank": [3.0, 2.0, 1.0], "4 ranks": [3.0, 2.0, 1.5]}, smooth=2),
    "schedule": lambda: show.schedule(ring(4)),
    "large schedule": lambda: show.schedule(ring(12), max_rounds=3),
    "broadcast": lambda: show.schedule(tree_broadcast(4)),
    "unrolled": lambda: show.unrolled(num_steps=4),
    "transformer_block": lambda: show.transformer_block(),
    "lookup": lambda: show.lookup([1, 2], [[1, 0], [0, 1], [1, 1]], [10, 20, 30]),
    "weights": lambda: show.weights({"head 1": [[1.0, 0.0], [0.4, 0.6]], "head 2": np.eye(2)}, "ab"),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_a_picture_displays_itself_as_an_image_with_a_short_alternative_text(make):
    picture = make()
    data = picture._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/plain"] == repr(picture) == f"<Picture: {picture.alt}>" and 10 < len(picture.alt) < 200
    image = image_in(data["text/html"])
    assert image["alt"] == picture.alt and (int(image["width"]), int(image["height"])) == picture.size
    narrowest = int(re.search(r"min-width:(\d+)px", image["style"])[1])
    assert 10 * narrowest / picture.size[0] >= 8.99  # points: the height of the letters on a narrow page
    kind, _, png = image["src"].partition(",")
    assert kind == "data:image/png;base64" and len(png) < 270_000 and base64.b64decode(png).startswith(PNG)


def test_alternative_text_may_hold_any_sign():
    said = 'loss < 1 & "sharp"'
    assert image_in(show.picture(show.figure()[0], said).html())["alt"] == said


def test_a_page_made_by_nbconvert_says_what_a_picture_and_a_control_show():
    picture = show.lines({"ring": [1, 2]}, "ranks", "time (ms)")
    shown = [picture, show.control(slider_picture, step=(0.0, 1.0, 0.1, 0.5))]
    view = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("execute_result", each._repr_mimebundle_())])
            for each in shown
        ]
    )
    page, _ = nbconvert.HTMLExporter().from_notebook_node(view)
    assert [image["alt"] for image in images_in(page)] == [picture.alt, "loss against step: SGD"]


def image_in(text):
    (image,) = images_in(text)
    return image


def images_in(text):
    """The attributes of each image on an HTML page."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(dict(attributes)) if tag == "img" else None
    parser.feed(text)
    return found


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_no_text_leaves_the_picture_or_lies_on_other_text_or_is_small(make):
    picture = make()
    FigureCanvasAgg(picture.figure).draw()
    boxes = [(text.get_text(), text.get_window_extent(), text.get_fontsize()) for text in texts(picture)]
    for k, (text, box, size) in enumerate(boxes):
        assert size >= 10, text
        assert picture.figure.bbox.padded(1).contains(box.x0, box.y0), text
        assert picture.figure.bbox.padded(1).contains(box.x1, box.y1), text
        for other, place, _ in boxes[k + 1 :]:
            assert not box.padded(-1.5).overlaps(place.padded(-1.5)), (text, other)


def test_colours_belong_to_things_and_can_be_told_apart():
    assert show.colour("ring") == show.COLOURS["ring"] == show.colour("Ring")
    assert show.colour("halving-doubling") == show.COLOURS["halving_doubling"]
    assert show.colour("rank 3") == show.rank_colour(3) == show.rank_colour(11)
    assert len({show.rank_colour(rank) for rank in range(8)}) == 8
    for family in ("ring star tree direct halving_doubling hierarchical torch", "sgd momentum rmsprop adam adamw"):
        assert len({show.colour(name) for name in family.split()}) == len(family.split())
    assert text_colour("white") != (1, 1, 1)
    with pytest.raises(ValueError, match=r"'bagel'.*ring"):
        show.colour("bagel")
    with pytest.raises(ValueError, match="-1"):
        show.rank_colour(-1)


def test_a_curve_keeps_its_colour_whatever_stands_beside_it():
    def line_colours(*names):
        picture = show.lines({name: [1, 2] for name in names}, "step", "loss")
        return {line.get_label(): line.get_color() for line in picture.figure.axes[0].get_lines()}

    assert line_colours("Adam")["Adam"] == line_colours("mine", "SGD", "Adam")["Adam"] == show.colour("adam")
    drawn = line_colours("mine", "yours", "SGD")
    assert len(set(drawn.values())) == 3


def test_curves_are_named_at_their_ends_and_the_guess_is_drawn():
    picture = show.lines(
        {"ring": [1, 2], "star": [1, np.nan]}, "ranks", "time (ms)", "T", guess=1.5, marks={"here": 0.5}
    )
    assert {"ring", "star", "ranks", "time (ms)", "T", "your guess: 1.5", "here"} <= words(picture)
    assert not any("guess" in word for word in words(show.lines({"a": [1]}, "x", "y", guess=...)))
    with pytest.raises(TypeError, match="guess"):
        show.lines({"a": [1]}, "x", "y", guess="soon")


def test_a_curve_is_named_elsewhere_where_asked():
    picture = show.lines({"ring": ([2, 1], [1, 2]), "star": [3, 4]}, "x", "y", names_at={"ring": (1.2, 1.9)})
    [text] = picture.figure.axes[0].texts
    assert (text.get_text(), text.get_position()) == ("ring", (1.2, 1.9))
    assert [text.get_text() for text in picture.figure.findobj(Text)].count("ring") == 1 and "star" in words(picture)
    with pytest.raises(ValueError, match="names_at of ring"):
        show.lines({"star": [1]}, "x", "y", names_at={"ring": (1, 1)})


def test_points_have_the_colour_of_their_curve_and_are_inside_a_logarithmic_axis():
    picture = show.lines({"ring": ([1, 10], [1, 1])}, "x", "y", logy=True, points={"ring": ([1, 10], [5.0, 4000.0])})
    curve, rings = picture.figure.axes[0].get_lines()
    assert rings.get_xydata().tolist() == [[1, 5], [10, 4000]]
    assert rings.get_markeredgecolor() == curve.get_color() == show.colour("ring")
    assert (curve.get_marker(), rings.get_linestyle()) == ("None", "None")
    assert picture.figure.axes[0].get_ylim()[1] > 4000
    with pytest.raises(ValueError, match="points of star"):
        show.lines({"ring": [1]}, "x", "y", points={"star": ([1], [1])})


def test_bars_stand_one_after_the_other_with_a_key_and_their_numbers():
    picture = show.bars({"a": {"latency": 1, "bytes": 3}, "b": {"bytes": 2.5}}, "ms", colours={"latency": "wait"})
    left_and_width = [(bar.get_x(), bar.get_width()) for bar in picture.figure.axes[0].patches]
    assert left_and_width == [(0, 1), (1, 3), (0, 2.5)]
    assert {"a", "b", "latency", "bytes", "  4", "  2.5"} <= words(picture)
    numbered = show.bars({"a": {"x": 1.5, "y": 0, "z": 20}}, "ms", numbers=True)
    middles = {text.get_text(): text.get_position()[0] for text in numbered.figure.axes[0].texts}
    assert middles == {"1.5": 0.75, "20": 11.5, "  21.5": 21.5}
    assert show.bars({"a": 1}, "ms", guess=9).figure.axes[0].get_xlim()[1] > 9
    assert show.bars({"a": 0}, "ms", xlim=(0, 7)).figure.axes[0].get_xlim() == (0, 7)
    for wrong in ({}, [3], {"a": -1}, {"a": np.nan}, {"a": {"b": np.inf}}):
        with pytest.raises((TypeError, ValueError), match="rows"):
            show.bars(wrong, "ms")


def test_a_graph_stands_from_its_sources_to_its_result_with_gradients_where_they_have_arrived():
    picture = graph_of_two_paths()
    places = {text.get_text(): text.get_position()[0] for text in texts(picture)}
    assert {"w\n−0.500", "tanh\n−0.462", "L ×\n0.231", "1.000"} == set(places)
    assert [places[text] for text in ("w\n−0.500", "tanh\n−0.462", "L ×\n0.231")] == [-2, -1, 0]


def test_panels_are_grey_without_negative_numbers_and_blue_and_red_with_them():
    picture = show.panels([("a", np.eye(2)), None, ("b", -np.eye(2)), ("c", np.zeros((2, 2)))], "four", rows=2)
    axes = picture.figure.axes
    maps = [ax.images[0].get_cmap().name for ax in axes if ax.get_visible()]
    assert maps == ["gray_r", "RdBu_r", "gray_r"]
    assert [ax.get_visible() for ax in axes] == [True, False, True, True]
    assert axes[2].images[0].get_clim() == (-1, 1) and axes[3].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("images", [[], [("a", [1, 2])] * 2, [("a", np.eye(2))] * 3])
def test_panels_refuse_what_is_no_matrix_or_fills_no_rows(images):
    with pytest.raises(ValueError, match="needed"):
        show.panels(images, "none", rows=2)


def test_lanes_start_at_zero_and_keep_their_axes_where_asked():
    picture = show.lanes({"a": LOADED, "b": LOADED[:1]}, guess={"b": 3.0})
    upper, lower = picture.figure.axes
    assert sorted((bar.get_x(), bar.get_width()) for bar in upper.patches) == [(0, 1000), (1000, 500), (1000, 1000)]
    assert upper.get_xlim() == lower.get_xlim() and lower.get_xlim()[1] > 3000
    assert {"compute", "load", "your guess: 3000 ms"} <= words(picture)
    assert "your guess: 1234.6 ms" in words(show.lanes({"a": LOADED}, guess={"a": 1.234567891}))
    for is_open in (None, {}, {"a": None}, {"a": ...}):
        assert not any("guess" in word for word in words(show.lanes({"a": LOADED}, guess=is_open)))
    limits = [show.lanes({"a": LOADED[:n]}, num_lanes=7, until_s=9.0).figure.axes[0].axis() for n in (1, 3)]
    assert limits[0] == limits[1]
    for wrong in ({}, [LOADED], {"a": []}):
        with pytest.raises((TypeError, ValueError), match="runs"):
            show.lanes(wrong)


def test_owners_name_the_ranks_that_own_something():
    picture = show.owners(np.array([[0.0, 2.0], [np.nan, 2.0]]), "sample", "shard", "Whose?")
    assert {"rank 0", "rank 2", "sample", "shard", "Whose?"} <= words(picture) and "rank 1" not in words(picture)


def test_labels_move_apart_as_little_as_needed():
    assert np.allclose(spread([5.0, 1.0], [1, 1], 0, 10), [5.0, 1.0])
    moved = spread([5.0, 5.0, 5.2], [1, 1, 1], 0, 10)
    assert np.allclose(np.diff(moved), 1) and np.isclose(moved.mean(), 5.0 + 0.2 / 3)
    assert spread([9.9, 9.9], [1, 1], 0, 10).max() <= 9.5


@pytest.mark.parametrize(
    ("source", "told"), [("simulated", "· simulated"), ("emulated links", "· emulated links"), ("measured", "Ping")]
)
def test_a_timeline_says_where_its_times_come_from(source, told):
    picture = show.timeline(two_ranks(source), "Ping")
    assert picture.figure.axes[0].get_title(loc="left").endswith(told)
    assert {"time (ms)", "forward", "send", "receive", "add", "wait", "rank 1"} <= words(picture)


def test_the_key_of_a_timeline_names_what_is_computed_and_the_grey_of_an_idle_rank():
    assert {"compute: forward", "idle"} <= words(show.timeline(two_ranks()))
    assert "compute: load, forward, backward, step, …" in words(show.timeline(long_run()))
    numbered = [Span(0, "compute", at, at + 1, label=label) for at, label in enumerate(["F 0.1", "F 1.1", "B 3", "2"])]
    assert "compute: F, B" in words(show.timeline(Trace(numbered, "measured")))
    unnamed = Trace([Span(0, "compute", 0.0, 1.0)], "measured")
    assert {"compute", "idle"} <= words(show.timeline(unnamed))


@pytest.mark.parametrize("order", [1, -1], ids=["short first", "long first"])
def test_timelines_have_one_axis_and_one_unit_that_suit_the_longest(order):
    lengths_s = {"short": 0.9, "long": 1.5}
    runs = {name: Trace([Span(0, "compute", 0.0, time_s)], "measured") for name, time_s in lengths_s.items()}
    picture = show.timelines(dict(list(runs.items())[::order]), guess={"short": 1.2}, marks={"long": {"formula": 1.0}})
    limits = [ax.get_xlim() for ax in picture.figure.axes]
    assert limits[0] == limits[1] and limits[0][0] == 0 and 1.5 <= limits[0][1] < 1.6
    assert {"short", "long", "your guess: 1.2 s", "formula", "time (s)"} <= words(picture)
    assert "short" in picture.alt and "long" in picture.alt
    wild = show.timelines(runs, guess={"short": 30.0}).figure.axes
    assert wild[0].get_xlim() == wild[1].get_xlim() and wild[0].get_xlim()[1] > 30
    for wrong in ({}, [two_ranks()], {"a": 3}):
        with pytest.raises(TypeError, match="Trace"):
            show.timelines(wrong)


def test_a_timeline_starts_at_zero_and_shows_the_ranks_asked_for():
    ax = show.timeline(two_ranks()).figure.axes[0]
    assert ax.get_xlim()[0] == 0 and 15 <= ax.get_xlim()[1] < 16  # 3.000 s … 3.015 s
    many = simulate(star(70), 1e6, slow_links()).trace
    assert "64 of 70 ranks" in show.timeline(many).alt
    assert {"rank 3", "rank 69"} <= words(show.timeline(many, ranks=[3, 69]))
    with pytest.raises(ValueError, match="ranks"):
        show.timeline(many, ranks=[70])
    with pytest.raises(ValueError, match="empty"):
        show.timeline(Trace([], "measured"))
    with pytest.raises(TypeError, match="Trace"):
        show.timeline([1, 2])


def test_pipelines_show_each_pass_with_its_micro_batch_on_one_axis():
    few, many = show.pipelines(pipelines_of(3)), show.pipelines(pipelines_of(3), guess={"ZBV": 0.1})
    assert {"GPipe · simulated", "ZBV · simulated", "backward (B)", "idle", "0", "2", "rank 1"} <= words(few)
    assert "3" not in {text.get_text() for text in texts(few)}
    for picture in (few, many):
        limits = {ax.get_xlim() for ax in picture.figure.axes}
        assert len(limits) == 1 and (limits.pop()[1] > 100) == (picture is many)
    assert "your guess: 100 ms" in words(many)
    own = Trace([Span(1, "compute", 5.0, 6.0, label="forward 1.0"), Span(1, "compute", 6.0, 8.0, label="step")])
    assert show.pipelines({"": own}).figure.axes[0].get_xlim()[1] < 1.1
    for wrong in ({}, [own], {"a": 3}):
        with pytest.raises(TypeError, match="Trace"):
            show.pipelines(wrong)
    with pytest.raises(ValueError, match=r"traces\['ping'\] has no step of a pipeline"):
        show.pipelines({"ping": two_ranks()})


def test_a_ledger_shows_counted_and_measured_bytes():
    counted = show.ledger({"star": count(star(4), 1000), "ring": count(ring(4), 1000)}, formula=("2(N−1)/N · M", 6000))
    assert {"star", "ring", "12", "6", "sent (KB)", "2(N−1)/N · M"} <= words(counted)
    measured = show.ledger([Ledger(bytes_received=3_000_000)] * 3, direction="received")
    assert {"3", "received (MB)"} <= words(measured)
    assert show.ledger({"sent nothing": [Ledger(), Ledger()]}).png().startswith(PNG)
    for wrong in (3, [], {"ring": None}, [3]):
        with pytest.raises(TypeError, match="Ledger"):
            show.ledger(wrong)
    with pytest.raises(ValueError, match="direction"):
        show.ledger([Ledger()], direction="up")


def test_states_follow_the_rounds_of_a_schedule():
    everybody = [[0b1111] * 4] * 4
    assert states(ring(4))[0] == [[1 << rank] * 4 for rank in range(4)]
    assert states(ring(4))[-1] == states(direct(4))[-1] == everybody
    assert states(ring_all_gather(3))[-1] == [[1, 2, 4]] * 3
    with pytest.raises(ValueError, match="round 0"):
        states(Schedule(2, 1, [[Message(0, 2, 0, "add")]]))


def test_schedules_too_large_to_draw_are_refused():
    for draw in (show.schedule, show.player):
        with pytest.raises(ValueError, match="64"):
            draw(ring(65))
        with pytest.raises(TypeError, match="Schedule"):
            draw([1, 2])


def test_the_shades_and_lines_of_a_landscape_have_a_key():
    picture = show.contours(bowl, {"SGD": [(2, 1), (1, 0)]}, (-3, 3), (-2, 2), minimum=(0, 0), zlabel="J")
    assert {"SGD", "start", "minimum", "J, the same along a line"} <= words(picture)
    bar = picture.figure.axes[1]
    drawn = sorted(float(tick.get_text()) for tick in bar.get_yticklabels())
    assert 0 <= drawn[0] < 1 and drawn[-1] == 49  # the loss is 9 + 40 in the corners
    alone = show.contours(bowl, {}, (-3, 3), (-2, 2))
    assert "loss, the same along a line" in words(alone) and not {"start", "minimum"} & words(alone)


def test_contours_take_functions_of_numbers_and_refuse_what_does_not_fit():
    assert show.contours(lambda x, y: float(x) + float(y), {}, (0, 1), (0, 1)).png().startswith(PNG)
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        show.contours(bowl, {"SGD": [1, 2]}, (0, 1), (0, 1))
    with pytest.raises(ValueError, match="xlim"):
        show.contours(bowl, {}, (1, 0), (0, 1))
    with pytest.raises(ZeroDivisionError):
        show.contours(lambda x, y: 1 / 0, {}, (0, 1), (0, 1))


@pytest.mark.parametrize("wrong", [{}, {"a": []}, {"a": ([1, 2], [1])}, {"a": "text"}, [1, 2]])
def test_lines_refuse_what_is_no_curve(wrong):
    with pytest.raises((TypeError, ValueError), match="series"):
        show.lines(wrong, "x", "y")


def slider_picture(step, kind="SGD"):
    if step > 0.9:
        raise OverflowError("the loss has exploded <here>")
    return show.lines({kind: [1, step]}, "step", "loss")


def test_a_control_redraws_and_is_whole_without_a_kernel():
    control = show.control(slider_picture, step=(0.0, 1.0, 0.1, 0.5), kind=["SGD", "Adam"])
    data = control._repr_mimebundle_()
    assert {"text/plain", "text/html", VIEW} == set(data) and data["text/html"] == control.image.value
    assert control.values == {"step": 0.5, "kind": "SGD"} and image_in(control.image.value)["width"] == "700"
    before = control.image.value
    control.widgets["step"].value = 0.2
    after = control.image.value
    assert before != after and image_in(after)["alt"] == control.picture.alt == "loss against step: SGD"
    control.widgets["kind"].value = "Adam"
    assert control.image.value != after and image_in(control.image.value)["alt"] == "loss against step: Adam"
    assert control._repr_mimebundle_()["text/html"] == before  # the page keeps the first picture
    assert not any(isinstance(child, ipywidgets.Output) for child in control.box.children)


def test_an_error_while_drawing_is_shown_and_goes_away():
    control = show.control(slider_picture, step=(0.0, 1.0, 0.1, 0.5))
    before = control.image.value
    control.widgets["step"].value = 1.0
    assert "OverflowError" in control.message.value and "&lt;here&gt;" in control.message.value
    assert "step=1.0" in control.message.value and control.image.value == before
    control.widgets["step"].value = 0.5
    assert control.message.value == ""
    with pytest.raises(OverflowError):
        show.control(slider_picture, step=(0.0, 1.0, 0.1, 1.0))


def test_an_error_can_be_read_on_every_theme():
    control = show.control(slider_picture, step=(0.0, 1.0, 0.1, 0.5))
    control.widgets["step"].value = 1.0
    style = dict(re.findall(r"\b(color|background):(#\w{6})", control.message.value))
    assert contrast(style["color"], style["background"]) >= 4.5  # its own background lies over that of the theme


def contrast(one, other):
    """Contrast of two colours as WCAG 2 defines it: 1 to 21."""
    channels = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


def test_inputs_follow_their_specs():
    own = ipywidgets.FloatLogSlider(value=0.1, min=-3, max=0)

    def draw(**values):
        return show.lines({"a": [1, 2]}, "x", "y").figure

    control = show.control(
        draw, whole=(1, 9, 1, 3), real=(0, 1, 0.5, 0), ranks=[1, 2, 4], kind=["a", "b"], on=True, learning_rate=own
    )
    kinds = {name: type(widget).__name__ for name, widget in control.widgets.items()}
    assert list(kinds.values()) == [
        "IntSlider",
        "FloatSlider",
        "SelectionSlider",
        "Dropdown",
        "Checkbox",
        "FloatLogSlider",
    ]
    assert own.description == "learning rate"
    for wrong in ((0, 1), (2, 1, 1, 1), [], "abc", None):
        with pytest.raises((TypeError, ValueError), match="spec"):
            show.control(draw, spec=wrong)
    with pytest.raises(TypeError, match="draw returned a int"):
        show.control(lambda n: 3, n=(1, 2, 1, 1))


def test_a_slider_follows_the_hand_only_where_asked():
    quick = show.control(slider_picture, continuous=True, step=(0.0, 1.0, 0.1, 0.5))
    patient = show.control(slider_picture, continuous=False, step=(0.0, 1.0, 0.1, 0.5))
    assert quick.widgets["step"].continuous_update and not patient.widgets["step"].continuous_update


def test_a_player_steps_through_the_rounds():
    player = show.player(ring(3))
    assert player.still.alt.startswith("ring on 3 ranks") and "start of 4 rounds" in player.picture.alt
    pictures = {player.image.value}
    for number, op in ((1, "add"), (4, "copy")):
        player.widgets["round"].value = number
        assert f"round {number} of 4: {op}" in player.picture.alt and player.message.value == ""
        pictures.add(player.image.value)
    assert len(pictures) == 3
    assert "1 rank" in show.player(ring(1)).picture.alt
    many = show.player(ring(9))
    many.widgets["round"].value = 16
    assert many.message.value == "" and "round 16 of 16" in many.picture.alt


def test_pictures_drawn_in_threads_do_not_disturb_each_other():
    wanted, drawn = [slider_picture(k / 10).png() for k in range(4)], {}

    def draw(k):
        drawn[k] = slider_picture(k / 10).png()

    threads = [threading.Thread(target=draw, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [drawn[k] for k in range(4)] == wanted


def test_a_lookup_shows_the_softmax_of_its_scores_and_the_weighted_mean():
    shown = [text.get_text() for text in texts(show.lookup([1, 2], [[1, 0], [0, 1], [1, 1]], [10, 20, 30]))]
    exponentials = np.exp([1.0, 2.0, 3.0])
    shares = exponentials / exponentials.sum()
    assert {f"{share:.2f}" for share in shares} <= set(shown)
    assert f"{shares @ [10, 20, 30]:.2f}" == "25.75" and "25.75" in shown
    with pytest.raises(ValueError, match=r"keys of shape \(2, 3\): \(2, 2\) is needed"):
        show.lookup([1, 2], [[1, 0, 0], [0, 1, 0]], [10, 20])


def test_own_figures_become_pictures(tmp_path):
    fig, axes = show.figure(columns=2)
    axes[0].set_title("left one")
    picture = show.picture(fig)
    assert picture.alt == "left one" and isinstance(picture.figure, Figure)
    picture.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    with pytest.raises(TypeError, match="Figure"):
        show.picture("figure")
    with pytest.raises(ValueError, match="width"):
        show.figure(width=0)


def test_a_table_shows_its_cells_and_headings_as_text_with_a_little_markdown():
    link = "[07](07-x.ipynb#a)"
    rows = [
        {"no. <1>": 1, "lesson": link, "why": "`a<b` is *not* **so** & 2*3"},
        {"no. <1>": None, "lesson": "", "why": ""},
    ]
    table = show.table(rows, "All of *them*")
    data = table._repr_mimebundle_()
    assert data == {"text/plain": "<Table: All of *them*>", "text/html": table.html()}
    cells = re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", data["text/html"])
    assert cells[:3] == ["no. &lt;1&gt;", "lesson", "why"]
    assert cells[3:] == [
        "1",
        '<a href="07-x.ipynb#a">07</a>',
        "<code>a&lt;b</code> is <i>not</i> <b>so</b> &amp; 2*3",
        "",
        "",
        "",
    ]
    assert "<button" not in data["text/html"]  # the script makes them: without it there is nothing that does nothing


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "rows="),
        ({"a": 1}, "rows="),
        ([{"a": 1}, {"b": 1}], r"rows\[1\] has"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], r"rows\[1\]"),
    ],
)
def test_a_table_of_nothing_or_of_unlike_rows_is_refused(rows, said):
    with pytest.raises((TypeError, ValueError), match=said):
        show.table(rows, "title")
