"""The card beside the weights."""

import pytest
from model_folders import edit, write_model

from meshnet.errors import UserError
from meshnet.networks.card import read_card


@pytest.mark.parametrize("key", ["averaged", "shifted"])
def test_a_switch_of_the_card_is_true_or_false(tmp_path, key):
    write_model(tmp_path)
    edit(tmp_path / "config.json", **{key: None})
    with pytest.raises(UserError, match=f"config.json: found {key} = None, expected true or false"):
        read_card(tmp_path)
