"""The table of networks and their counts."""

import re
import sys

from meshnet.networks import __main__, baselines
from meshnet.networks.memory import count_parameters
from meshnet.networks.meshnet import MeshNet
from meshnet.recipe import find_recipe, list_recipes, load_recipes

HEADS_OF_DEEP_SUPERVISION = sum(2 * c + 2 for c in (32, 64, 128))  # unused 1x1x1 layers to 2 classes


def test_counts_are_the_papers():
    rows = __main__.table()
    found = {row["name"]: row["parameters"] for row in rows}
    assert found == {
        "meshnet (channels 5)": 5_682, "meshnet (channels 16)": 56_194, "meshnet (channels 26)": 147_474,
        "umamba_bot": 7_351_400 - HEADS_OF_DEEP_SUPERVISION, "umamba_enc": 7_514_280 - HEADS_OF_DEEP_SUPERVISION,
        "mednext_s": 5_201_315 - 1, "mednext_b": 10_526_307 - 1, "mednext_m": 17_548_963 - 1,
        "segresnet": 1_176_186, "swin_unetr": 18_346_844, "unetr": 95_763_682, "unet": 1_979_610, "vnet": 45_597_898,
        "ukan": 44_070_082, "residual_unet": 4_806_481}
    for row in rows:
        assert (row["parameters"] == row["paper"]) == (row["why"] == ""), row
    unlike = {row["name"]: row["paper"] - row["parameters"] for row in rows if row["why"]}
    assert unlike == {"umamba_bot": 454, "umamba_enc": 454, "mednext_s": 1, "mednext_b": 1, "mednext_m": 1,
                      "residual_unet": 1_979_610 - 4_806_481}
    listed = {line.split()[0]: line for line in list_recipes().splitlines() if line.startswith("  ")}
    told = {name: int(line.split()[1].replace(",", "")) for name, line in listed.items()
            if re.match(r"[\d,]+$", line.split()[1])}
    own = {f"meshnet{channels}": found.pop(f"meshnet (channels {channels})") for channels in (5, 16, 26)}
    given = {"meshnet16-synthetic": (1, 4), "meshnet16-cascade": (8, 3)}  # channels and classes, where not 1 and 2
    for name in ("tiny", "demo", *given):
        model = load_recipes([find_recipe(name)]).model
        inputs, classes = given.get(name, (1, 2))
        own[name] = count_parameters(MeshNet(model.channels, inputs, classes, model.dilations, norm=model.norm))
    assert told == found | own | {"meshnet26_tuned": 147_474}
    assert "0.876 (0.016)  MeshNet-26" in listed["meshnet26"] and "(" not in listed["meshnet26_tuned"]
    assert listed["unet"].split("  ")[-1] != listed["residual_unet"].split("  ")[-1]
    assert max(map(len, listed.values())) <= 140


def test_the_command_prints_every_network(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["baselines"])
    monkeypatch.setattr(__main__, "table", lambda: [
        {"name": name, "parameters": 6, "paper": 460, "why": row.why} for name, row in baselines.NETWORKS.items()])
    __main__.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in baselines.NETWORKS) and "-454  the authors' code" in printed
