"""Procedural lesions: exact volume, within the brain, one seed one lesion, and sizes and places like real ones."""

import numpy as np
import pytest

from meshnet.data.synthetic import lesions
from meshnet.data.synthetic.atlas import load_atlas


def test_volume_is_the_one_drawn():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        expected = lesions.draw_volume(np.random.default_rng(seed), 500, 50_000)
        lesion = lesions.draw_lesion(rng, 2, 500, 50_000)
        assert 500 <= expected <= 50_000
        assert abs(lesion.volume_mm3 - expected) <= 8  # one voxel of 2 mm


def test_volumes_follow_the_quantiles():
    rng = np.random.default_rng(0)
    volumes = [lesions.draw_volume(rng) for _ in range(4000)]
    found = np.quantile(volumes, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(found, [2013, 12659, 51932], rtol=0.15)


def test_a_lesion_lies_within_the_brain_and_on_one_side():
    atlas = load_atlas(2)
    brain = atlas.maps[..., :3].sum(-1, dtype=int) > 0.4 * 255 - 3
    for seed in range(6):
        lesion = lesions.draw_lesion(np.random.default_rng(seed), 2, 3000, 40_000)
        start = np.round((lesion.origin_mm - atlas.origin_mm) / 2).astype(int)
        part = tuple(slice(a, a + n) for a, n in zip(start, lesion.mask.shape))
        assert not (lesion.mask & ~brain[part]).any()
        x_mm = lesion.origin_mm[0] + 2 * np.argwhere(lesion.mask)[:, 0]
        assert max((x_mm > 4).mean(), (x_mm < -4).mean()) > 0.8 or abs(lesion.centre_mm[0]) < 12


def test_one_seed_one_lesion():
    first, again, other = (lesions.draw_lesion(np.random.default_rng(seed), 2, 0, 20_000) for seed in (7, 7, 8))
    assert np.array_equal(first.mask, again.mask) and np.array_equal(first.origin_mm, again.origin_mm)
    assert not np.array_equal(first.centre_mm, other.centre_mm)


def test_lattice_changes_resolution_not_place():
    coarse, fine = (lesions.draw_lesion(np.random.default_rng(3), level, 5000, 30_000) for level in (2, 1))
    assert np.linalg.norm(coarse.centre_mm - fine.centre_mm) < 1.5
    assert fine.volume_mm3 == pytest.approx(coarse.volume_mm3, abs=10)


def test_more_noise_makes_rougher_borders():
    def faces(fine: float) -> int:
        form = lesions.Shape(fine=fine, coarse=0, ragged=0, compact=0, satellites=0)
        drawn = [lesions.draw_lesion(np.random.default_rng(seed), 2, 20_000, 20_001, form) for seed in range(4)]
        return sum(np.abs(np.diff(np.pad(each.mask, 1).astype(int), axis=0)).sum() for each in drawn)

    assert faces(0.6) > 1.15 * faces(0.0)


def test_centres_take_both_sides_and_the_brainstem_is_for_small_ones():
    rng = np.random.default_rng(0)
    small, large = (np.array([lesions.draw_centre(rng, volume, load_atlas(4)) for _ in range(300)])
                    for volume in (1000.0, 100_000.0))
    assert 0.4 < (small[:, 0] < 0).mean() < 0.6
    brainstem = lambda centres: ((np.abs(centres[:, 0]) < 12) & (centres[:, 2] < -5)).mean()
    assert brainstem(small) > 3 * brainstem(large)


@pytest.mark.slow
def test_statistics_match_real_lesions(shared_data, root, tmp_path):
    import subprocess
    import sys

    result = subprocess.run([sys.executable, str(root / "benchmarks" / "lesion_statistics.py"),
                             str(shared_data / "lesions_mni"), "--table", str(tmp_path / "table.md")],
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
