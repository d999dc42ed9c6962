"""A network back from the ONNX file that ``share.py onnx`` wrote. Needs the package onnx (requirements-export.txt)."""

import json
from pathlib import Path

import torch

from meshnet.errors import UserError
from meshnet.networks.build import Model, add_variants, build
from meshnet.networks.card import Card, card_from
from meshnet.networks.cascade import check_first
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing.to_onnx import OF, WHOLE, contrast_file, first_file, import_package

LARGEST = 1 << 30  # bytes; no network that can be written as ONNX here has more


def read_onnx(path: Path) -> tuple[MeshNet, Card]:
    """The network and the card in an ONNX file of this program; of a cascade's second network with the first one and
    with other weights, from the files beside it, as ``load_model`` has them.

    Batch norm was fused into the convolutions when the file was written, so such a network comes back without norm: it
    computes the same, and cannot be trained as before.

    Raises:
        UserError: for any other ONNX file, for half precision and group norm, and where a file of a cascade is missing.
    """
    network, card, more = read_network(path)
    if OF in more:
        raise UserError(f"{path}: holds the weights of a cascade's second network for {more[OF]}, expected the file "
                        "with those for the rest, which is named without that; import that one")
    if card.first:
        network.first = read_first(path, card)
    if card.own_weights:
        add_variants(network, {contrast: read_variant(path, contrast, more) for contrast in card.own_weights})
    return network.eval(), card


def read_variant(path: Path, contrast: str, expected: dict) -> MeshNet:
    """The second network with the weights for ``contrast``, from the file beside ``path``, whose keys beside the card
    are ``expected``."""
    where = beside(path, contrast_file(path, contrast), f"the weights for {contrast}")
    network, _, found = read_network(where)
    if found != expected | {OF: contrast}:
        raise UserError(f"{where}: does not belong to {path.name}, expected the weights for {contrast} of the same "
                        "export; copy all files that share.py onnx wrote")
    return network


def read_network(path: Path) -> tuple[MeshNet, Card, dict]:
    """The network in one file alone, the card there, and which of several sets of weights it is. Errors as
    ``read_onnx``."""
    onnx = import_package("onnx")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, expected less than {LARGEST:,} of a MeshNet; give "
                        "another file")
    try:
        graph = onnx.load(str(path), load_external_data=False)
        known = {entry.key: entry.value for entry in graph.metadata_props}
        values = json.loads(known.get("meshnet", "null"))
    except Exception as error:  # noqa: BLE001 - the parser of another library
        raise UserError(f"{path}: not a whole ONNX file ({type(error).__name__}); copy it again") from None
    if not isinstance(values, dict) or values.get("name") != "meshnet":
        raise UserError(f"{path}: found no MeshNet that share.py onnx wrote, expected one; other ONNX files are for "
                        "the programs that run them, and cannot be imported")
    card = card_from(values, path)
    arguments = dict(card.arguments)
    if values.get("precision") == "fp16" or arguments.get("norm") == "group":
        kind = "half precision" if values.get("precision") == "fp16" else "group norm"
        raise UserError(f"{path}: found {kind}, whose weights stand in the file in another form; expected fp32 and "
                        "another norm. share.py tfjs writes what can be read back")
    if arguments.get("norm", "batch") == "batch":
        arguments |= {"norm": "none", "bias": True, "final_bias": True, "dropout": 0.0}
    network = build("meshnet", arguments)
    found = {tensor.name.removeprefix("module."): onnx.numpy_helper.to_array(tensor)
             for tensor in graph.graph.initializer}
    for node in graph.graph.node:  # the exporter keeps equal tensors once
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0].removeprefix("module.")] = found[node.input[0]]
    tensors = {}
    for name, fresh in network.state_dict().items():
        tensor = found.get(name)
        if tensor is None or tensor.shape != tuple(fresh.shape):
            raise UserError(f"{path}: found no tensor {name} of shape {tuple(fresh.shape)}, expected the weights as "
                            "share.py onnx writes them; export the model again")
        tensors[name] = torch.from_numpy(tensor.copy()).to(fresh.dtype)
    network.load_state_dict(tensors)
    others = {key: value for key, value in card.others.items() if key not in ("size_multiple", "precision", OF, WHOLE)}
    more = {key: card.others[key] for key in (OF, WHOLE) if key in card.others}
    return network, card.changed(others=others, arguments=network.arguments), more


def beside(path: Path, other: Path, what: str) -> Path:
    """The file ``other`` of the cascade whose second network is in ``path``.

    Raises:
        UserError: where it is missing.
    """
    if not other.is_file():
        raise UserError(f"{other}: not found, expected {what} of the cascade in {path.name}; copy all files that "
                        "share.py onnx wrote")
    return other


def read_first(path: Path, card: Card) -> Model:
    """The first network of the cascade whose second one is in the file ``path``."""
    where = beside(path, first_file(path), "the first network")
    network, first, _ = read_network(where)
    check_first(where, first, card)
    return Model(network.eval(), first)
