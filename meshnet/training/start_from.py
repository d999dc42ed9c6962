"""Training that starts from the weights of a trained model (``--init``)."""

import sys

import torch

from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import Card
from meshnet.networks.cascade import of_contrast
from meshnet.numbers import plain

FREE = {"dropout", "image_size"}  # arguments of a network that may differ from those of the model it starts from


def start_from(network: torch.nn.Module, init: str, info: dict) -> None:
    """Give ``network`` the weights of the model ``init``.

    Raises:
        UserError: where that is another network, or its scans were prepared differently from the data set (``info``).
    """
    trained, card = build.load_model(init)
    for key in ("orientation", "scaling", "window"):
        found = getattr(card, key)
        if found != info[key]:
            raise UserError(f"--init {init}: trained with {key} {found}, expected {info[key]} as the data set was "
                            f"prepared; prepare.py --like {init} prepares scans for it")
    if card.averaged != info.get("averaged", False):
        kinds = ("averaged", "others") if card.averaged else ("sampled", "averaged ones")
        print(f"note: --init {init}: trained on {kinds[0]} voxels, the data set has {kinds[1]}; prepare.py "
              f"--like {init} prepares them alike", file=sys.stderr)
    if card.voxel_mm != info.get("voxel_mm", card.voxel_mm):
        print(f"note: --init {init}: trained at {plain(card.voxel_mm)} mm, the data set has {plain(info['voxel_mm'])} "
              f"mm; prepare.py --like {init} prepares them alike", file=sys.stderr)
    if card.centre != info.get("centre", card.centre):
        print(f"note: --init {init}: trained on grids with the centre {card.centre!r}, the data set has "
              f"{info['centre']!r}, half a voxel beside it; prepare.py --like {init} prepares them alike",
              file=sys.stderr)
    shared = shared_classes(card, info)
    if not shared[1:]:
        raise UserError(f"--init {init}: has the classes {', '.join(card.classes)}, expected one of them in the "
                        f"data set ({', '.join(info['classes'])}); prepare.py --classes names those")
    if (card.first or []) != (info.get("first") or []):
        kinds = [f"the probabilities of a first network for {', '.join(names)}" if names else "the scan alone"
                 for names in (card.first, info.get("first"))]
        raise UserError(f"--init {init}: is given {kinds[0]}, expected {kinds[1]} as the data set holds it; prepare.py "
                        f"--like {init} prepares scans for it")
    if card.mirror != info.get("mirror", False):
        kinds = ["the mirror image as well" if mirror else "no mirror image" for mirror in
                 (card.mirror, info.get("mirror", False))]
        raise UserError(f"--init {init}: is given {kinds[0]}, expected {kinds[1]} as the data set holds it; prepare.py "
                        f"--like {init} prepares scans for it")
    if len(card.channels) != len(info["channels"]):
        raise UserError(f"--init {init}: has {len(card.channels)} channels ({', '.join(card.channels)}), "
                        f"expected {len(info['channels'])} as the data set ({', '.join(info['channels'])})")
    if len(card.channels) > 1 and card.channels != info["channels"]:
        raise UserError(f"--init {init}: has channels {', '.join(card.channels)}, expected "
                        f"{', '.join(info['channels'])} in that order, as the data set")
    theirs, ours = ({"name": m.name, **m.arguments} for m in (trained, network))
    for key in sorted((theirs.keys() | ours.keys()) - FREE - {"classes"}, key=lambda key: (key != "name", key)):
        if theirs.get(key) != ours.get(key):
            raise UserError(f"--init {init}: has {key} {theirs.get(key)}, expected {ours.get(key)} as the recipe says; "
                            "leave the model section out of the recipe, and the model's own is taken")
    weights, fresh = weights_for(trained, card, init, info.get("looks", {})), network.state_dict()
    if shared != [(number, number) for number in range(max(len(card.classes), len(info["classes"])))]:
        weights = take_classes(weights, network, shared)
    if {key: tensor.shape for key, tensor in weights.items()} != {key: tensor.shape for key, tensor in fresh.items()}:
        raise UserError(f"--init {init}: has weights for {card.arguments}, expected {network.arguments}")
    network.load_state_dict(weights)


def weights_for(trained: torch.nn.Module, card: Card, init: str, looks: dict[str, int]) -> dict:
    """The tensors of the model ``init``; of a cascade that has other weights for some contrasts the set that is for
    most of the cases (``looks``: how many look like each contrast)."""
    sets = {}  # the contrasts of each set
    for contrast in sorted(looks):
        sets.setdefault(contrast if contrast in card.own_weights else None, []).append(contrast)
    likely = max(sets, key=lambda one: sum(looks[contrast] for contrast in sets[one]), default=None)
    chosen = build.network_for(trained, likely)
    if card.own_weights and not looks:
        print(f"note: --init {init}: has other weights for scans that look like {', '.join(card.own_weights)}, and the "
              "data set does not say what its cases look like; those for the rest are taken. Prepare it again with "
              f"prepare.py --like {init} to have the right ones", file=sys.stderr)
    if others := [contrast for one in sets if one != likely for contrast in sets[one]]:
        print(f"note: --init {init}: {sum(looks[contrast] for contrast in others)} of {sum(looks.values())} cases look "
              f"like {', '.join(others)}, for which it has other weights than for {', '.join(sets[likely])}; those for "
              "the latter are taken", file=sys.stderr)
    return of_contrast(chosen.state_dict(), None)


def shared_classes(card: Card, info: dict) -> list[tuple[int, int]]:
    """(number in the model, number in the data set) of each class that both have, background first.

    Classes with the same name are the same. A data set's only class, whatever its name, is matched with the only one
    that a model has or marks.
    """
    known, wanted = card.classes, info["classes"][1:]
    only = known[1] if len(known) == 2 else card.marks
    if len(wanted) == 1 and only and (len(known) == 2 or wanted[0] not in known[1:]):
        return [(0, 0), (known.index(only), 1)]
    return [(0, 0), *((known.index(name), number) for number, name in enumerate(wanted, 1) if name in known[1:])]


def take_classes(weights: dict, network: torch.nn.Module, shared: list[tuple[int, int]]) -> dict:
    """``weights`` for the classes of ``network``: a tensor with a row for each class (K, …) gets the rows of the
    ``shared`` classes and keeps the network's own rows for the others.

    Raises:
        UserError: where another axis has the length of the classes as well, so that rows alone are not enough.
    """
    with torch.random.fork_rng(devices=[]):  # training must not draw other numbers because of the model it starts from
        wider = build.build(network.name, {**network.arguments, "classes": network.arguments["classes"] + 1})
    shapes, taken = {key: tensor.shape for key, tensor in wider.state_dict().items()}, dict(weights)
    for key, tensor in network.state_dict().items():
        if key not in weights or shapes.get(key) == tensor.shape:
            continue
        if shapes[key][1:] != tensor.shape[1:]:
            raise UserError(f"--init: {key} of a {network.name} has the classes on two axes; expected the same classes "
                            "in the same order in the data set, use prepare.py --labels and --classes")
        taken[key] = tensor.clone()
        for theirs, ours in shared:
            taken[key][ours] = weights[key][theirs]
    return taken
