"""Give the second network of a cascade other weights for some contrasts: those of other cascades.

``python benchmarks/trust/own_weights.py --common FOLDER --own "FLAIR or DWI" FOLDER --out FOLDER``

Both must have the same first network, and second ones that differ in nothing but their weights. The decision for these
contrasts is the other cascade's, for all else that of the one with the common weights; so is the rest of the card.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import UserError, run_script
from meshnet.networks.build import Model, add_variants, load_model, network_for
from meshnet.networks.card import CONFIG, OWN, WEIGHTS, Card, card_from
from meshnet.networks.cascade import FIRST, network_of
from meshnet.networks.folder import find_folder, save_model
from meshnet.scans.contrast import CONTRASTS

ALIKE = ("name", "arguments", "channels", "classes", "first", "marks", "mirror", "voxel_mm", "shape", "orientation",
         "centre", "averaged", "scaling")  # of both cards


def decided(card: Card, contrast: str) -> dict:
    """What ``card`` says of ``contrast``, with the values that stand for all contrasts where it says nothing."""
    common = {"threshold": card.threshold, "sure": card.sure, "min_lesion_mm3": card.min_lesion_mm3,
              "first_share": card.first_share}
    return {**common, **card.contrasts.get(contrast, {}), OWN: True}


def joined(common: Path, others: dict[str, Path]) -> Model:
    """The cascade in ``common`` with the weights of ``others`` for some contrasts.

    Raises:
        UserError: for what is no cascade, or differs in more than the second network's weights.
    """
    (network, card), sets = load_model(common), {}
    contrasts = dict(card.contrasts)
    for contrast, folder in others.items():
        other, own = load_model(folder)
        for where, one in ((common, card), (folder, own)):
            if not one.first:
                raise UserError(f"{where}: is a single network, expected a cascade; give the folder of one")
        for key in ALIKE:
            found, expected = (getattr(one, key) for one in (own, card))
            if key == "arguments" and found != expected:  # that one of them, by name, which differs
                key = min(name for name in found if found[name] != expected.get(name))
                found, expected = found[key], expected.get(key)
            if found != expected:
                raise UserError(f"{folder}: found {key} {found}, expected {expected} as {common}; train both alike")
        if network_of(folder / FIRST / WEIGHTS) != network_of(common / FIRST / WEIGHTS):
            raise UserError(f"{folder}: found another first network than in {common}, expected the same; train the "
                            "second one behind that")
        sets[contrast], contrasts[contrast] = network_for(other, contrast), decided(own, contrast)
    kept = {name: network_for(network, name) for name in card.own_weights if name not in sets}
    add_variants(network, kept | sets)
    card = card.changed(contrasts=contrasts)
    card_from(card.to_dict(), common / CONFIG)  # whether this cascade may look at the contrast
    return Model(network, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--common", required=True, help="the cascade with the weights for all other contrasts")
    parser.add_argument("--own", nargs=2, action="append", required=True, metavar=("CONTRAST", "CASCADE"),
                        help=f"whose weights to take for a contrast: {', '.join(CONTRASTS)}")
    parser.add_argument("--out", required=True, help="model folder to write")
    arguments = parser.parse_args()
    names = [contrast for contrast, _ in arguments.own]
    if not set(names) <= set(CONTRASTS) or len(set(names)) < len(names):
        raise UserError(f"--own: found {', '.join(names)}, expected some of {', '.join(CONTRASTS)}, each once")
    for name in (arguments.common, *(folder for _, folder in arguments.own)):
        if Path(name).suffix == ".safetensors":
            raise UserError(f"{name}: is a file, expected a model folder, whose model.safetensors is taken; copy the "
                            "folder with these weights under that name")
    save_model(arguments.out, *joined(find_folder(arguments.common), {
        contrast: find_folder(folder) for contrast, folder in arguments.own}))


if __name__ == "__main__":
    run_script(main)
