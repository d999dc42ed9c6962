"""Every optimizer and schedule setting against torch's own class or by hand."""

import math

import pytest
import torch
from torch import nn

from meshnet.config import Config, EmaConfig, OptimizerConfig, SchedulerConfig, resolve
from meshnet.errors import UserError
from meshnet.networks.meshnet import MeshNet
from meshnet.training.optim import Schedule, build_ema, build_optimizer, group_parameters


def optimizer_config(**values) -> OptimizerConfig:
    config = Config()
    config.optimizer = OptimizerConfig(**values)
    return resolve(config).optimizer


def scheduler_config(**values) -> SchedulerConfig:
    config = Config()
    config.scheduler = SchedulerConfig(**values)
    return resolve(config).scheduler


def network():
    torch.manual_seed(0)
    return MeshNet(channels=3, dilations=[1, 2])


def train(model, optimizer, steps=3):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.rand(1, 1, 4, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize("values", [
    {"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.5}, {"lr": 0.01, "eps": 1e-2}, {"lr": 0.01, "betas": [0.5, 0.6]},
    {"lr": 0.01, "amsgrad": True, "betas": [0.1, 0.2]},
], ids=str)
def test_each_adamw_setting_acts_as_in_torch(values):
    ours, theirs, plain = network(), network(), network()
    found = train(ours, build_optimizer(ours, optimizer_config(**values)), 6)
    expected = train(theirs, torch.optim.AdamW(theirs.parameters(), **values), 6)
    assert torch.equal(found, expected)
    if len(values) > 1:  # and it does act
        assert not torch.equal(found, train(plain, torch.optim.AdamW(plain.parameters(), lr=0.01), 6))


def test_layer_wise_rates_by_name():
    model = network()
    config = optimizer_config(lr=0.1, param_groups=[{"match": r"^blocks\.0\.", "lr": 1e-3},
                                                    {"match": "head", "lr": 1e-2, "weight_decay": 0.7}])
    by_parameter = {id(p): group for group in group_parameters(model, config) for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = by_parameter[id(parameter)]
        expected = 1e-3 if name.startswith("blocks.0.") else 1e-2 if "head" in name else 0.1
        assert (group["lr"], group["weight_decay"]) == (expected, 0.7 if "head" in name else config.weight_decay), name


@pytest.mark.parametrize(("groups", "words"), [
    ([{"match": "encoder", "lr": 1}], ["'encoder' matches no parameter", "blocks"]),
    ([{"match": "blocks", "lr": 1}, {"match": "conv", "lr": 1}], ["blocks.0.conv.weight", "'blocks'", "'conv'"]),
    ([{"match": "(", "lr": 1}], ["regular expression"]),
])
def test_patterns_that_miss_or_collide_are_refused(groups, words):
    with pytest.raises(UserError) as error:
        build_optimizer(network(), optimizer_config(param_groups=groups))
    assert all(word in str(error.value) for word in words)


def test_norms_and_biases_can_go_without_decay():
    model = network()
    groups = group_parameters(model, optimizer_config(weight_decay=0.3, decay_norm_and_bias=False))
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.3 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {"blocks.0.conv.weight", "blocks.1.conv.weight", "head.weight"}
    assert [group["weight_decay"] for group in groups] == [0.3, 0]
    own = [{"match": r"blocks\.1", "lr": 0.1, "weight_decay": 0.2}]
    groups = group_parameters(model, optimizer_config(weight_decay=0.3, decay_norm_and_bias=False, param_groups=own))
    assert sorted(group["weight_decay"] for group in groups) == [0, 0, 0.2, 0.3]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# ------------------------------------------------------------------ schedules

def rates(config, steps_per_epoch, epochs, warmup=0, lr=0.5, metrics=None, groups=None):
    """The rate of every step (of the first group) as the training loop would use it."""
    parameters = groups or [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr}]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = Schedule(optimizer, config, steps_per_epoch, epochs, warmup)
    found = []
    for epoch in range(epochs):
        schedule.begin_epoch(epoch)
        for _ in range(steps_per_epoch):
            found.append(schedule.rates() if groups else schedule.rates()[0])
            optimizer.step()
            schedule.end_step()
        schedule.end_epoch(metrics[epoch] if metrics else 0.0)
    return found


def one_cycle_by_hand(total, peak_at, lr, div=100.0, final=1e4):
    start, end = lr / div, lr / div / final
    cosine = lambda a, b, share: b + (a - b) / 2 * (math.cos(math.pi * share) + 1)
    return [cosine(start, lr, i / peak_at) if i <= peak_at else cosine(lr, end, (i - peak_at) / (total - 1 - peak_at))
            for i in range(total)]


@pytest.mark.parametrize("total", [3, 12, 50, 100, 1000])
def test_one_cycle_starts_rises_and_ends_where_it_should(total):
    found = rates(scheduler_config(), steps_per_epoch=1, epochs=total)
    peak_at = max(1, round(0.01 * total) - 1)  # at least one step of rise
    assert found == pytest.approx(one_cycle_by_hand(total, peak_at, 0.5), rel=1e-9)
    assert found[0] == pytest.approx(0.5 / 100)
    assert max(found) == pytest.approx(0.5) and found.index(max(found)) == peak_at
    assert found[-1] == pytest.approx(0.5 / 100 / 1e4) == min(found)


@pytest.mark.parametrize("values", [
    {"pct_start": 0.3}, {"div_factor": 7.0}, {"final_div_factor": 3.0}, {"anneal_strategy": "linear"},
])
def test_each_one_cycle_setting_acts_as_in_torch(values):
    arguments = {"pct_start": 0.1, "div_factor": 100.0, "final_div_factor": 1e4, "anneal_strategy": "cos"} | values
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40, cycle_momentum=False, **arguments)
    expected = []
    for _ in range(40):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(scheduler_config(**arguments), 10, 4) == pytest.approx(expected)


@pytest.mark.parametrize("cycle", [False, True])
def test_cycle_momentum_moves_beta_only_when_asked(cycle):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    schedule = Schedule(optimizer, scheduler_config(cycle_momentum=cycle, pct_start=0.5), 10, 1)
    schedule.begin_epoch(0)
    betas = []
    for _ in range(10):
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.end_step()
    assert (len(set(betas)) > 1) is cycle
    assert cycle or set(betas) == {0.9}


def test_one_cycle_keeps_layer_wise_rates():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.5, 0.05)]
    found = rates(scheduler_config(pct_start=0.2), 5, 4, groups=groups)
    assert all(a == pytest.approx(10 * b) for a, b in found)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("cases", [12, 50, 100])
def test_one_cycle_spans_the_run_whatever_makes_up_a_step(processes, accumulation, cases):
    from meshnet.training.run import steps_per_epoch

    config = Config()
    config.training.accumulation = accumulation
    steps = steps_per_epoch(config, cases, processes)
    assert steps == math.ceil(cases / (processes * accumulation))
    found = rates(scheduler_config(), steps, epochs=2)
    assert found[0] == pytest.approx(0.005) and found[-1] == pytest.approx(0.005 / 1e4) == min(found)
    assert found.index(max(found)) == max(1, round(0.01 * 2 * steps) - 1)


def test_max_lr_is_the_same_knob_as_lr():
    config = Config()
    config.scheduler.max_lr = 0.02
    filled = resolve(config)
    assert filled.optimizer.lr == 0.02 and filled.scheduler.max_lr is None


@pytest.mark.parametrize("steps", [1, 2])
def test_one_cycle_of_one_or_two_steps_stays_at_its_peak(steps):
    assert rates(scheduler_config(), 1, steps) == [0.5] * steps


def test_warm_up_is_the_guide_loop_and_the_schedule_has_the_rest():
    found = rates(scheduler_config(), steps_per_epoch=4, epochs=15, warmup=5)
    assert found[:20] == pytest.approx([0.5 * (epoch + 1) / 5 for epoch in range(5) for _ in range(4)])
    assert found[20:] == pytest.approx(one_cycle_by_hand(40, 1, 0.5))
    constant = rates(scheduler_config(name="constant"), 2, 4, warmup=2)
    assert constant == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("values", [
    {"pct_start": 0.3}, {"name": "ReduceLROnPlateau", "patience": 1, "factor": 0.5}, {"name": "cosine"},
    {"name": "constant"}], ids=str)
def test_a_warm_up_goes_before_any_schedule_and_leaves_it_as_it_is(values):
    metrics = [0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]
    found = rates(scheduler_config(**values), 3, 13, warmup=3, metrics=[9.0] * 3 + metrics)
    assert found[:9] == pytest.approx([0.5 * (epoch + 1) / 3 for epoch in range(3) for _ in range(3)])
    assert found[9:] == pytest.approx(rates(scheduler_config(**values), 3, 10, metrics=metrics))


def test_cosine_is_by_epoch_and_ends_at_its_minimum():
    found = rates(scheduler_config(name="cosine", T_max=10, eta_min=0.1), steps_per_epoch=3, epochs=11)[::3]
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(11)]
    assert found == pytest.approx(expected)
    assert rates(scheduler_config(name="cosine"), 1, 8)[4] == pytest.approx(0.25)  # T_max null: all the epochs


PLATEAU = {"name": "ReduceLROnPlateau", "factor": 0.5, "patience": 1, "threshold": 0.1, "threshold_mode": "abs",
           "cooldown": 0, "min_lr": 0.0}
METRICS = [0.1, 0.15, 0.2, 0.21, 0.22, 0.22, 0.22, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("values", [
    {}, {"factor": 0.1}, {"patience": 3}, {"threshold": 0.01}, {"threshold_mode": "rel"}, {"cooldown": 2},
    {"min_lr": 0.2}, {"mode": "min"},
], ids=str)
def test_each_plateau_setting_acts_as_in_torch(values):
    arguments = {"mode": "max"} | PLATEAU | values
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
    settings = {key: value for key, value in arguments.items() if key != "name"}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)
    expected = []
    for metric in METRICS:
        expected.append(optimizer.param_groups[0]["lr"])
        theirs.step(metric)
    found = rates(scheduler_config(**arguments), 2, len(METRICS), metrics=METRICS)[::2]
    assert found == expected
    base = rates(scheduler_config(mode="max", **PLATEAU), 2, len(METRICS), metrics=METRICS)[::2]
    assert not values or found != base


def test_plateau_says_each_reduction_when_verbose_and_waits_for_validation():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = Schedule(optimizer, scheduler_config(**PLATEAU | {"patience": 0, "verbose": True}), 1, 10)
    lines = []
    for epoch, metric in enumerate([0.5, None, 0.5, 0.5]):
        schedule.begin_epoch(epoch)
        lines.append(schedule.end_epoch(metric))
    assert lines[:2] == [None, None]  # an epoch without validation counts for nothing
    assert "epoch 3" in lines[2] and "0.5 reduced to 0.25" in lines[2]


@pytest.mark.parametrize("values", [{"pct_start": 0.3}, PLATEAU, {"name": "cosine"}, {"name": "constant"}], ids=str)
def test_a_schedule_goes_on_from_its_state(values):
    config = scheduler_config(**values)

    def run(break_at):
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = Schedule(optimizer, config, 2, 8, 2)
        found = []
        for epoch in range(8):
            schedule.begin_epoch(epoch)
            for step in range(2):
                found.append(schedule.rates()[0])
                optimizer.step()
                schedule.end_step()
                if (epoch, step) == break_at:
                    saved, saved_optimizer = schedule.state_dict(), optimizer.state_dict()
                    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5)
                    schedule = Schedule(optimizer, config, 2, 8, 2)
                    optimizer.load_state_dict(saved_optimizer)
                    schedule.load_state_dict(saved)
                    schedule.begin_epoch(epoch)
            schedule.end_epoch(METRICS[epoch])
        return found

    assert all(run((epoch, step)) == run(None) for epoch in range(8) for step in range(2))


# ------------------------------------------------------------------ averaged weights

def test_ema_by_hand_and_as_torch():
    model = nn.Linear(1, 1, bias=False)
    ema = build_ema(model, EmaConfig(enabled=True, decay=0.75, warmup=False))
    values, expected = [1.0, 2.0, 4.0, 0.0], None
    for value in values:
        model.weight.data.fill_(value)
        ema.update_parameters(model)
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    assert ema.module.weight.item() == pytest.approx(expected)
    torch_ema = torch.optim.swa_utils.AveragedModel(
        nn.Linear(1, 1, bias=False), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75))
    for value in values:
        model.weight.data.fill_(value)
        torch_ema.update_parameters(model)
    assert torch_ema.module.weight.item() == pytest.approx(ema.module.weight.item())


def test_ema_warm_up_forgets_early_weights():
    model = nn.Linear(1, 1, bias=False)
    ema = build_ema(model, EmaConfig(enabled=True, decay=0.999, warmup=True))
    expected = None
    for count, value in enumerate([1.0, 2.0, 3.0]):
        model.weight.data.fill_(value)
        ema.update_parameters(model)
        decay = (1 + count) / (10 + count)
        expected = value if count == 0 else decay * expected + (1 - decay) * value
    assert ema.module.weight.item() == pytest.approx(expected)
    assert build_ema(model, EmaConfig()) is None
