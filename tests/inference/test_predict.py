"""Whole volumes: what the network itself gives, by the kernels or by PyTorch, and mistakes by name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import VARIANTS, by_model, network, scan
from torch import nn

from meshnet.errors import UserError
from meshnet.inference import predict
from meshnet.kernels import calls


@pytest.mark.parametrize("arguments", VARIANTS)
@pytest.mark.parametrize("shape", [(17, 22, 35), (1, 33, 20), (9, 1, 1)])
def test_full_volume_is_the_network_itself(way, arguments, shape):
    if shape[0] == 9 and arguments.get("norm") == "instance":
        shape = (9, 1, 2)
    model = network(**arguments)
    volume = scan(arguments.get("in_channels", 1), shape)
    logits = predict.predict_logits(model, volume, crop="none")
    expected = by_model(model, volume)
    assert logits.shape == expected.shape and logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.tuples(*[st.integers(1, 24)] * 3), st.integers(1, 15),
       st.sampled_from(["relu", "elu", "gelu"]))
def test_any_dilations_and_sizes(dilations, shape, channels, activation):
    model, volume = network(channels, dilations, activation=activation), scan(1, shape)
    assert np.abs(predict.predict_logits(model, volume, crop="none") - by_model(model, volume)).max() < 1e-4


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_box_is_that_of_the_volume_however_it_lies(way, order):
    model, volume = network(3, (1, 2)), np.asarray(scan(1, (9, 8, 7)), order=order)
    box = ((2, 9), (0, 3), (1, 6))
    inside = (slice(None), *(slice(a, b) for a, b in box))
    found = predict.predict_logits(model, volume, crop=np.array(box))
    assert np.abs(found - by_model(model, np.ascontiguousarray(volume)))[inside].max() < 1e-5
    for wrong in (((20, 30), (0, 3), (0, 3)), ((0, 3), (0, 3))):
        with pytest.raises(UserError, match=str(wrong).replace("(", r"\(").replace(")", r"\)")):
            predict.predict_logits(model, volume, crop=wrong)


def test_a_ceiling_that_nothing_fits_is_the_users_mistake(way):
    with pytest.raises(UserError, match="max_memory"):
        predict.predict(network(), scan(1, (20, 20, 20)), max_memory=1000)
    with pytest.raises(UserError, match="max_memory"):
        predict.predict(network(norm="group"), scan(1, (20, 20, 20)), max_memory=1000)
    with pytest.raises(UserError, match=r"max_memory.*Conv3d"):  # a network that cannot be cut
        predict.predict(nn.Conv3d(1, 3, 1).eval(), scan(1, (9, 8, 7)), max_memory=10**10)


def test_the_three_kinds_of_answer_agree(way):
    model, volume = network(classes=4), scan(1, (21, 18, 37), ((2, 18), (3, 15), (4, 30)))
    logits = predict.predict_logits(model, volume)
    assert np.abs(predict.predict(model, volume) - torch.from_numpy(logits).softmax(0).numpy()).max() < 1e-5
    labels = predict.predict_labels(model, volume)
    assert labels.dtype == np.uint8 and np.array_equal(labels, logits.argmax(0))


def test_on_a_real_head(way, shared_data):
    import nibabel as nib

    image = nib.load(shared_data / "t2_stroke" / "M2265_T2w.nii.gz")
    part = np.asarray(image.dataobj[90:130, 20:100, 60:130], dtype=np.float32)[None] / 255
    model = network(16, (1, 2, 4, 8, 16, 2))
    assert np.abs(predict.predict_logits(model, part, crop="none") - by_model(model, part)).max() < 1e-3


@pytest.mark.parametrize(("volume", "crop", "message"), [
    (np.zeros((5, 5, 5), np.float32), "head", "expected \\(C, X, Y, Z\\)"),
    (np.zeros((2, 5, 5, 5), np.float32), "head", "with C = 1"),
    (np.full((1, 5, 5, 5), np.nan, np.float32), "head", "NaN"),
    (np.zeros((1, 5, 5, 5), np.float32), "brain", "crop: found 'brain'"),
    (np.zeros((1, 5, 5, 5), np.float32), ((2, 2), (0, 5), (0, 5)), "crop: found the box"),
])
def test_mistakes_are_named(volume, crop, message):
    with pytest.raises(UserError, match=message):
        predict.predict(network(), volume, crop=crop)


def test_threads_are_those_asked_for_and_put_back():
    before, model, seen = torch.get_num_threads(), nn.Conv3d(1, 2, 1).eval(), []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    for threads in (before + 1, None):
        predict.predict(model, scan(1, (5, 5, 5)), threads=threads)
        assert torch.get_num_threads() == before
    assert seen == [before + 1, before]


@pytest.mark.skipif(not calls.available(), reason="minutes without the kernels")
@pytest.mark.parametrize("crop", ["head", "none"])
def test_published_network_marks_a_whole_real_head_as_published(shared_data, crop):
    import nibabel as nib

    from meshnet.sharing.tfjs import read_tfjs

    model = read_tfjs(shared_data / "brainchop" / "model.json")[0].eval()
    scan = np.asarray(nib.load(shared_data / "brainchop" / "t1_256.nii.gz").dataobj, dtype=np.float32)
    volume = ((scan - scan.min()) / np.ptp(scan))[None]
    reference = np.asarray(nib.load(shared_data / "brainchop" / "labels_reference.nii.gz").dataobj)
    assert np.array_equal(predict.predict_labels(model, volume, crop=crop), reference)
