"""What kind of scan a file's name says, and where that is not what the model is for."""

import pytest
from bright import bright_model, infer, scan_file

from meshnet.data.synthetic.case import make_case
from meshnet.scans.contrast import OTHER, T1W, T2W
from meshnet.scans.naming import kind_in_name, name_remarks

EVERY = ["T1w, T2w, FLAIR or DWI"]


@pytest.mark.parametrize("name, kind", [
    ("FLAIR.nii.gz", "FLAIR"), ("sub-1_ses-2_T2w.nii.gz", "T2w"), ("sub-1_acq-T2_space-T1w_FLAIR.nii", "FLAIR"),
    ("M2265_T2w.nii.gz", "T2w"), ("case0009_dwi.nii.gz", "DWI"), ("case0009_adc.nii.gz", "ADC"),
    ("IXI002-Guys-0828-T1.nii.gz", "T1w"), ("p3.t2_flair.nii", "FLAIR"), ("3D-T2-FLAIR", "FLAIR"), ("T2FLAIR", "FLAIR"),
    ("x_DWI_b1000.nii.gz", "DWI"), ("t1_mprage_sag", "T1w"), ("sub-1_T2starw", "T2starw"), ("head CT.nii", "CT"),
    # none, or several:
    ("scan.nii.gz", None), ("sub-01.nii.gz", None), ("FLAIR_to_T1.nii.gz", None), ("T1_FLAIR.nii", None),
    ("CT_004.nii", None), ("pd0012_brain.nii", None), ("patient12.nii", None), ("flairmont.nii", None),
    ("sub-FLAIR3.nii", None), ("oblique_thick.nii.gz", None), ("scan2_t12.nii", None), ("dwight.nii.gz", None)])
def test_a_name_says_a_kind_only_by_a_word_of_its_own(name, kind):
    assert kind_in_name(f"T2w/T1w_folder/{name}") == kind


@pytest.mark.parametrize("name, channels, looks, words", [
    ("FLAIR.nii", ["T2w"], None, "its name says FLAIR, but the model is for T2w scans; do not trust the mask"),
    ("case_adc.nii", EVERY, OTHER, "says ADC, but the model is for T1w, T2w, FLAIR or DWI scans"),
    ("a_FLAIR.nii", EVERY, T1W, "its name says FLAIR, but it looks like T1w and was segmented as such"),
    ("a_T2w.nii", EVERY, OTHER, "its name says T2w, but it looks like FLAIR or DWI"),
    ("FLAIR.nii", ["FLAIR"], None, None), ("a_DWI.nii", EVERY, OTHER, None), ("a_FLAIR.nii", EVERY, OTHER, None),
    ("scan.nii", ["T2w"], T1W, None), ("a_T1.nii", ["T1w"], None, None), ("FLAIR.nii", ["image"], None, None)])
def test_a_name_is_compared_with_the_model_and_with_the_looks(name, channels, looks, words):
    found = name_remarks([name], channels, looks)
    assert len(found) == (words is not None) and (words is None or words in found[0])


def test_each_channel_is_compared_with_its_own_file():
    assert name_remarks(["a_T2w.nii", "b.nii"], ["T2w", "FLAIR"], None) == []
    assert name_remarks(["a_T2w.nii", "a_DWI.nii"], ["T2w", "FLAIR"], None) == [
        "its name says DWI, but the model is for FLAIR scans in this place (channel FLAIR); do not trust the mask, or "
        "take another model"]


def test_infer_says_it_and_a_name_without_a_kind_draws_nothing(tmp_path):
    model = bright_model(tmp_path / "model")
    for name in ("FLAIR.nii.gz", "a_T2w.nii.gz", "plain.nii.gz"):
        scan_file(tmp_path / name)
    said = infer(tmp_path, "--model", model, "--no-picture").stderr
    assert said.count("warning: ") == 1
    assert f"warning: {tmp_path}/FLAIR.nii.gz: its name says FLAIR, but the model is for T2w scans" in said


@pytest.mark.slow
def test_no_false_alarm_on_synthetic_scans_called_by_their_contrast(tmp_path):
    """Twelve heads; the rule of looks gets at most three wrong, which is said where the name tells, and only there."""
    import nibabel as nib

    from meshnet import segment_scan

    said = 0
    for seed in range(12):
        contrast = ("T1w", "T2w", "FLAIR", "DWI")[seed % 4]
        image = make_case(seed, 4.0, "train", contrasts={contrast: 1.0}, extracted=0.0, artefacts=0.0)[0]
        for name in (f"sub-{seed:02}.nii.gz", f"sub-{seed:02}_{contrast}.nii.gz"):
            nib.save(image, tmp_path / name)
        assert not [line for line in segment_scan(tmp_path / f"sub-{seed:02}.nii.gz").remarks if "its name" in line]
        found = segment_scan(tmp_path / f"sub-{seed:02}_{contrast}.nii.gz")
        wrong = found.contrast != {"T1w": T1W, "T2w": T2W}.get(contrast, OTHER)
        assert wrong == any("its name says" in line for line in found.remarks)
        said += wrong
    assert said <= 3
