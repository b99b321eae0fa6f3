"""The cost model beside published tables, beside schedules, and beside what our own strategies take."""

from dataclasses import replace
from itertools import combinations

import pytest

from lessons_lib import Links
from lessons_lib.cost import (
    Budget,
    Cluster,
    Model,
    Plan,
    break_even_h,
    fit,
    memory_of,
    predict,
    search,
    timeline,
    traffic,
)
from lessons_lib.cost.published import A100, ACTIVATIONS_GIB, BOTH, FULL, MEGATRON, GiB, measured, megatron
from lessons_lib.cost.space import most_kept
from lessons_lib.schedules import count, interleaved, one_f_one_b, ring, simulate

STATES = {"22B": 45.5625, "175B": 45.5625, "530B": 31.640625, "1T": 32.958984375}  # figure 1, GiB per device
PERCENT = {  # figure 7, read from the drawing: sequence, selective, both, full
    "22B": (66.84, 49.42, 16.18, 7.64),
    "175B": (62.04, 56.53, 18.49, 8.71),
    "530B": (58.31, 62.04, 20.27, 9.42),
    "1T": (58.31, 62.04, 20.27, 9.42),
}


@pytest.mark.parametrize("name", MEGATRON)
def test_the_published_bytes_to_every_digit(name):
    for how, published in zip(({}, BOTH), ACTIVATIONS_GIB[name], strict=True):
        sizes = memory_of(*megatron(name, **how))
        assert sizes["activations"] == published * GiB
        assert sizes["parameters"] + sizes["gradients"] + sizes["optimizer"] == STATES[name] * GiB


@pytest.mark.parametrize("name", MEGATRON)
def test_the_published_shares_as_far_as_they_can_be_read(name):
    whole = memory_of(*megatron(name))["activations"]
    ways = ({"sequence": True}, {"recompute": "selective"}, BOTH, {"recompute": "full"})
    for how, percent in zip(ways, PERCENT[name], strict=True):
        assert 100 * memory_of(*megatron(name, **how))["activations"] / whole == pytest.approx(percent, abs=0.15)


@pytest.mark.parametrize("pp, v, num_micro_batches", [(1, 1, 4), (4, 1, 8), (4, 1, 2), (4, 2, 8), (3, 3, 6), (2, 4, 2)])
def test_as_many_stashes_as_the_schedule_keeps(pp, v, num_micro_batches):
    program = one_f_one_b(pp, num_micro_batches) if v == 1 else interleaved(pp, num_micro_batches, v)
    assert most_kept(Plan(num_micro_batches, pp=pp, v=v)) == count(program).most_kept[0]


def errors(cluster, rows):
    return [predict(model, cluster, plan).time_s / took_s - 1 for model, plan, took_s in rows]


@pytest.mark.parametrize("fitted, others", [(("22B", "530B"), ("175B", "1T")), (("22B", "1T"), ("175B", "530B"))])
def test_two_constants_fitted_on_two_models_predict_the_other_two(fitted, others):
    """Fitted on 530B and 1T alone it is 22 % off at 22B: two large models do not tell FLOP/s from bandwidth."""
    off = list(map(abs, errors(fit(A100, measured(*fitted)), measured(*others))))
    assert sum(off) / len(off) <= 0.05 and max(off) <= 0.09


def test_of_the_six_pairs_two_predict_the_others_well_and_the_worst_is_far_off():
    """As lesson 22 says."""
    found = []
    for fitted in combinations(MEGATRON, 2):
        others = [name for name in MEGATRON if name not in fitted]
        off = list(map(abs, errors(fit(A100, measured(*fitted)), measured(*others))))
        found.append((sum(off) / len(off), max(off)))
    assert sum(mean <= 0.05 and worst <= 0.09 for mean, worst in found) == 2
    assert max(worst for _, worst in found) == pytest.approx(0.22, abs=0.01)


def test_eight_replicas_over_the_wires_between_nodes():
    """§6.3: 39.15 s with 8 times the devices and the batch."""
    model, plan = megatron("530B", **BOTH)
    fitted = fit(A100, measured("22B", "530B"))
    one, eight = (predict(model, fitted, replace(plan, dp=dp, batch=280 * dp)) for dp in (1, 8))
    assert one.time_s < eight.time_s == pytest.approx(39.15, rel=0.05)


# Narayanan et al. (2021), table 1: layers, width, heads; tp, pp, devices, batch; TFLOP/s of each device.
WEAK_SCALING = [
    (24, 2304, 24, 1, 1, 32, 512, 137),
    (30, 3072, 32, 2, 1, 64, 512, 138),
    (36, 4096, 32, 4, 1, 128, 512, 142),
    (40, 6144, 48, 8, 1, 256, 1024, 135),
    (48, 8192, 64, 8, 2, 512, 1536, 138),
    (60, 10240, 80, 8, 4, 1024, 1792, 140),
    (80, 12288, 96, 8, 8, 1536, 2304, 148),
    (96, 16384, 128, 8, 16, 1920, 2160, 155),
    (105, 20480, 128, 8, 35, 2520, 2520, 163),
    (128, 25600, 160, 8, 64, 3072, 3072, 163),
]


def best_of_2021(cluster, num_layers, width, heads, tp, pp, devices, batch):
    """Predicted TFLOP/s. Micro-batch and v are not in the table: those with which it is fastest and fits."""
    model, found = Model(num_layers, width, heads, 51200, 2048, recipe="mixed adam"), []
    dp = devices // tp // pp
    for micro_batch in (1, 2, 4, 8):
        for v in (1, 2, 3, 4, 5, 6):
            if num_layers % (pp * v) == 0 == batch % (dp * micro_batch) and (v == 1 or pp > 1):
                plan = Plan(batch, micro_batch, dp=dp, tp=tp, pp=pp, v=v, **FULL)
                ran = predict(model, cluster, plan)
                found += [ran.time_s] if ran.memory_bytes <= cluster.memory_bytes else []
    vocabulary = 51200 / (16 * num_layers * width)
    flops = 96 * batch * 2048 * num_layers * width**2 * (1 + 2048 / (6 * width) + vocabulary)  # §4.3 counts them so
    return flops / devices / min(found) / 1e12


def test_ten_models_from_another_paper_and_year():
    """With the constants of 2022 the large ones are predicted 8 to 12 % too fast. Most of it is a year of software: the
    530B with full recomputation reached 163 TFLOP/s in 2021, and 180 in 2022."""
    fitted = fit(A100, measured("22B", "530B"))
    off = [abs(best_of_2021(fitted, *row) / tflops - 1) for *row, tflops in WEAK_SCALING]
    assert sum(off) / len(off) <= 0.09 and max(off) <= 0.12


@pytest.mark.parametrize(
    "context, cp, dp, batch, tflops", [(8192, 1, 64, 2048, 430), (8192, 1, 128, 2048, 400), (131072, 16, 8, 128, 380)]
)
def test_llama_3_lies_between_no_interleaving_and_the_most(context, cp, dp, batch, tflops):
    """Llama 3 (2024), table 4. How many stages a rank has is not in the table; it decides how long ranks are idle."""
    fitted = fit(A100, measured("22B", "530B"))
    share, flops_share = fitted.memory_Bps / A100.memory_Bps, fitted.flops / A100.flops
    links = Links.two_level(8, Links(2e-6, 450e9 * share), Links(5e-6, 50e9 * share))
    h100 = Cluster(16384, 989e12 * flops_share, 80e9, 3350e9 * share, links)
    model = Model(126, 16384, 128, 128256, context, 53248, gated=True, kv_heads=8, fused=True, dropout=False)
    plan = Plan(batch, dp=dp, tp=8, pp=16, cp=cp, zero=1, sequence=True, overlap=True)
    low, high = (predict(model, h100, replace(plan, v=v)).flops_per_s / 1e12 for v in (1, 7))
    assert low < tflops < high
    assert model.weights == pytest.approx(405e9, rel=0.01)


def test_rings_are_those_of_the_schedules():
    model, plan = megatron("175B")
    links = Links.two_level(8, Links(1e-3, 1e6), Links(1e-2, 1e5))
    for rings in traffic(model, replace(plan, dp=4, batch=256)).values():
        if rings.num_ranks > 1 and rings.span <= 8:
            turns = rings.num_rings / 2
            played = simulate(ring(rings.num_ranks), rings.size_bytes, links)
            assert rings.time_s(links, 8) == pytest.approx(turns * played.total_s)
            counted = count(ring(rings.num_ranks), rings.num_ranks, rings.size_bytes / rings.num_ranks)
            assert rings.sent_bytes == pytest.approx(turns * counted.bytes_sent[0])


@pytest.mark.parametrize("pp, v, m", [(1, 1, 3), (4, 1, 8), (4, 2, 8), (2, 3, 4)])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_pipeline_takes_as_long_as_its_schedule(pp, v, m, recompute):
    model = Model(24, 1024, 16, 1, 512)  # one token in the vocabulary: the last stage is as fast as the others
    plan = Plan(m, tp=2, pp=pp, v=v, recompute=recompute, overlap=True)
    ran = predict(model, A100, plan)
    step_s = ran.time_s - ran.parts_s["pp"] - ran.parts_s["optimizer"]
    instant = replace(A100, links=Links.two_level(8, Links(2e-6, 300e9), Links()))
    assert ran.parts_s["dp"] == 0
    assert timeline(model, instant, plan).total_s == pytest.approx(step_s, rel=0.01)


def small_search(budget, **changes):
    model = Model(24, 2048, 16, 51200, 2048)
    cluster = replace(fit(A100, measured("22B", "530B")), num_devices=16, price=2.0, watts=400.0, **changes)
    return model, cluster, search(model, cluster, budget)


def test_the_cheapest_of_thousands_fits_and_each_runner_up_has_a_reason():
    budget = Budget(batch=32, time_s=3.0)
    model, cluster, found = small_search(budget)
    best, *others = found
    assert len(found) > 2000 and best.reason == "" and all(each.reason for each in others)
    for plan, ran, reason in found:
        assert ran == predict(model, cluster, plan)
        fits = ran.memory_bytes <= cluster.memory_bytes and ran.time_s <= budget.time_s
        assert fits == (not reason.startswith(("needs", "takes")))
        assert not fits or ran.money >= best.prediction.money
    assert best.prediction.money == pytest.approx(best.plan.num_devices * best.prediction.time_s / 3600 * 2)
    assert best.prediction.energy_J == pytest.approx(best.plan.num_devices * best.prediction.time_s * 400)


def test_long_sequences_are_cut_too():
    cluster = Cluster(16, 1e14, 80e9, 2e12)
    tried = {
        context: {each.plan.cp for each in search(Model(2, 512, 2, 1000, context, fused=True), cluster, Budget(1))}
        for context in (4096, 8192, 32768)
    }
    assert tried == {4096: {1}, 8192: {1, 2}, 32768: {1, 2, 4, 8}}


def test_less_memory_and_less_time_make_it_dearer():
    money = [small_search(Budget(32), memory_bytes=size)[2][0].prediction.money for size in (80e9, 20e9, 10e9)]
    assert money == sorted(money)
    fast = small_search(Budget(32, time_s=1.2))[2][0].prediction
    assert fast.time_s <= 1.2 and fast.money >= money[0]


def test_what_does_not_fit_says_what_comes_closest():
    with pytest.raises(ValueError, match=r"none of \d+ plans fits. What comes closest needs .* GB .*: Plan\(batch=32"):
        small_search(Budget(32), memory_bytes=1e8)
    with pytest.raises(ValueError, match=r"What comes closest takes .* s: 0.001 s are allowed"):
        small_search(Budget(32, time_s=1e-3))
    with pytest.raises(TypeError, match="budget is a int: a Budget is needed"):
        search(*megatron("22B")[:1], A100, 32)


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: Model(0, 64, 4, 10, 8), "num_layers=0: a whole number of at least 1"),
        (lambda: Model(2, 64, 5, 10, 8), "heads=5: a divisor of width=64"),
        (lambda: Model(2, 64, 4, 10, 8, kv_heads=3), "kv_heads=3: a divisor of heads=4"),
        (lambda: Model(2, 64, 4, 10, 8, num_experts=1), "active=2: at most num_experts=1"),
        (lambda: Model(2, 64, 4, 10, 8, recipe="x"), "recipe='x': one of "),
        (lambda: Cluster(8, -1, 1, 1), "flops=-1: a number of at least 1"),
        (lambda: Cluster(8, float("nan"), 1, 1), "flops=nan: a number of at least 1"),
        (lambda: Plan(6, 4), "batch=6: a multiple of dp · micro_batch = 4"),
        (lambda: Plan(8, v=2), "v=2: 1 is needed without a pipeline"),
        (lambda: Plan(8, dp=4, ep=3), "ep=3: a divisor of dp=4"),
        (lambda: Plan(8, zero=4), "zero=4: 0, 1, 2 or 3"),
        (lambda: Plan(8, recompute="all"), "recompute='all': one of 'none', 'selective', 'full'"),
        (lambda: Budget(8, time_s=0), "time_s=0: more than 0"),
        (lambda: predict(Model(2, 64, 4, 10, 8), A100, Plan(8, tp=3)), "tp=3: a divisor of heads=4"),
        (lambda: predict(Model(2, 64, 4, 10, 8), A100, Plan(8, cp=3)), "cp=3: a divisor of context=8"),
        (lambda: predict(Model(2, 64, 4, 10, 8), A100, Plan(8, dp=2, ep=2)), "ep=2: a divisor of num_experts=0"),
        (lambda: predict(Model(2, 64, 4, 10, 8), A100, Plan(8, pp=4)), "pp=4, v=1: at most num_layers=2"),
        (lambda: predict(Model(2, 64, 4, 10, 8), replace(A100, num_devices=2), Plan(8, dp=4)), "= 4: at most num_dev"),
        (lambda: fit(A100, measured("22B")[:1]), "rows has 1: at least 2"),
        (lambda: fit(A100, [(*megatron("22B"), 0), (*megatron("1T"), 1)]), "a time that is not positive"),
        (lambda: fit(A100, [(*megatron("22B", overlap=True), 1)] * 2), "rows has a plan with overlap"),
        (lambda: fit(A100, [(*megatron("22B"), 1), (*megatron("1T"), 1e9)]), "no shares of flops and bandwidths"),
    ],
)
def test_what_cannot_be_is_refused(make, problem):
    with pytest.raises(ValueError) as raised:
        make()
    assert problem in str(raised.value)


@pytest.mark.parametrize("name", ["model", "cluster", "plan"])
def test_another_type_is_named(name):
    model, plan = megatron("22B")
    arguments = {"model": model, "cluster": A100, "plan": plan, name: 3}
    with pytest.raises(TypeError, match=f"{name} is a int: a {name.capitalize()} is needed"):
        predict(**arguments)


def test_what_dp_sends_is_what_our_strategies_promise():
    """All-reduce 2 (N-1)/N M; the same with the optimizer sharded; three times (N-1)/N M with everything sharded."""
    model = Model(4, 64, 4, 100, 32, itemsize=4, recipe="float32 adam")
    sent = [predict(model, A100, Plan(4, dp=4, zero=zero)).sent_bytes["dp"] for zero in (0, 1, 2, 3)]
    assert sent == [pytest.approx(turns * 3 / 4 * 4 * model.weights) for turns in (2, 2, 2, 3)]


def test_zero_divides_what_it_says():
    model = Model(4, 64, 4, 100, 32)
    whole, *divided = (memory_of(model, Plan(4, dp=4, zero=zero)) for zero in (0, 1, 2, 3))
    for sizes, names in zip(divided, (["optimizer"], ["gradients"], ["parameters"]), strict=True):
        whole = {**whole, **{name: whole[name] / 4 for name in names}}
        assert {**sizes, "ends": 0} == {**whole, "ends": 0}


def test_experts_make_it_larger_but_not_slower_and_lie_on_ep():
    dense, mixture = (Model(4, 64, 4, 100, 32, num_experts=count, active=1) for count in (0, 8))
    ran, many, spread = (
        predict(model, A100, Plan(8, dp=8, ep=ep)) for model, ep in ((dense, 1), (mixture, 1), (mixture, 8))
    )
    assert many.flops == ran.flops and many.parts_s["compute"] == ran.parts_s["compute"]
    assert many.memory["parameters"] > 5 * ran.memory["parameters"] == 5 * spread.memory["parameters"]
    stream = 4 * 32 * 64 * 2  # to the experts and back, in both passes
    assert spread.sent_bytes["ep"] == 4 * stream * 7 / 8


def test_context_parallel_sends_keys_and_values_round():
    ran = predict(Model(4, 64, 4, 100, 32, kv_heads=2), A100, Plan(2, cp=4))
    assert ran.sent_bytes["cp"] == 2 * 3 * 4 * 3 * (2 * 8 * 32 * 2)  # micro-batches, passes, blocks, hops, K and V
    assert ran.memory["activations"] == predict(Model(4, 64, 4, 100, 8, kv_heads=2), A100, Plan(2)).memory[
        "activations"
    ] + 4 * 8 * 4 * 5 * (32 - 8)  # blocks, positions, heads, bytes of a score, keys from other ranks


def test_every_part_of_a_small_step_by_hand():
    model = Model(2, 64, 4, 1000, 32, gated=True, hidden=96)
    cluster = Cluster(4, 1e9, 1e12, 1e9, Links(1e-3, 1e6), half_flops=1e5)
    ran = predict(model, cluster, Plan(4, 2, tp=2))  # two micro-batches of 64 tokens, two blocks, two devices
    products, scores = 2 * 64 * (4 * 64**2 + 3 * 64 * 96) / 2 + 7 * 1e5, 4 * 64 * 32 * 64 / 2 + 2 * 1e5
    assert ran.parts_s["compute"] == pytest.approx(2 * 2 * 3 * (products + scores) / 1e9)
    moved = 2 * 64 * (11 * 64 + 3 * 96 / 2 + 6.5 * 4 * 32 / 2)
    assert ran.parts_s["memory"] == pytest.approx(2 * 2 * 2.5 * moved / 1e9)
    logits = 3 * (2 * 64 * 64 * 1000 / 2 + 1e5) + 16 * 64 * 1000 / 2
    assert ran.parts_s["logits"] == pytest.approx(2 * logits / 1e9)
    assert ran.parts_s["optimizer"] == pytest.approx(2 * 18 * model.weights / 2 / 1e9)
    assert ran.parts_s["tp"] == pytest.approx(2 * 2 * 2 * 2 * 2 * (1e-3 + 64 * 64 * 2 / 2 / 1e6))
    assert [ran.parts_s[what] for what in ("dp", "pp", "cp", "ep", "idle")] == [0] * 5
    assert ran.memory["ends"] == 64 * 1000 / 2 * (2 + 8) + 18 * 64 * 1000 / 2


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_overlap_hides_what_the_backward_pass_takes_and_no_more(zero):
    model, slow = Model(2, 64, 4, 1, 32), Cluster(4, 1e9, 1e12, 1e9, Links(0, 1e6))
    apart, beside = (predict(model, slow, Plan(16, dp=4, zero=zero, overlap=overlap)) for overlap in (False, True))
    compute_s = apart.parts_s["compute"] / 4  # of one of four micro-batches
    hidden_s = 2 / 3 * compute_s * (4 if zero == 3 else 1)
    assert apart.parts_s["dp"] - beside.parts_s["dp"] == pytest.approx(hidden_s)
    quick = replace(slow, links=Links(0, 1e15))
    assert predict(model, quick, Plan(16, dp=4, zero=zero, overlap=True)).parts_s["dp"] == 0


def test_what_costs_more_than_the_budget_is_told():
    _, _, found = small_search(Budget(32))
    limit = found[0].prediction.money * 1.01
    _, _, tight = small_search(Budget(32, money=limit))
    fits = [each for each in tight if not each.reason.startswith(("needs", "costs"))]
    assert all(each.prediction.money <= limit for each in fits)
    assert len(fits) == sum(each.prediction.money <= limit and each.prediction.memory_bytes <= 80e9 for each in found)
    assert all(each.plan.num_micro_batches % each.plan.pp == 0 for each in found if each.plan.v > 1)


def test_an_own_machine_is_cheaper_after_so_many_hours():
    assert break_even_h(20_000, 700, 0.30, 2.21) == pytest.approx(10_000)
    assert break_even_h(20_000, 700, 0.30, 0.21) == break_even_h(1, 700, 0.30, 0.0) == float("inf")
    assert break_even_h(0, 700, 0.30, 1.0) == 0
    with pytest.raises(ValueError, match="watts=-1: a number of at least 0"):
        break_even_h(1, -1, 1, 1)
