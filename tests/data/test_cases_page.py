"""The page with every case: what is odd comes first, with the reason; it opens without a network."""

import base64

import numpy as np
import pytest

from meshnet.data import cases_page
from meshnet.scans.overlay import thumbnail


class Data:
    """Twelve made-up cases of 10 mL; the ones named in ``changes`` have another volume or mask."""

    def __init__(self, changes, warnings=()):
        self.rows = [{"case": f"c{i}", "subject": f"s{i}", "lesion_ml": changes.get(i, {}).get("ml", 9.0 + 0.2 * i)}
                     for i in range(12)]
        self.changes, self.info = changes, {"warnings": dict(warnings)}

    def read(self, index, column):
        volume = np.zeros((12, 12, 12), np.uint8)
        volume[3:9, 3:9, 3:9] = 1 if column == "mask" else 100
        if column != "mask":
            return volume[None]
        shift = self.changes.get(index, {}).get("shift", 0)
        return np.roll(volume, shift, 0) * (self.rows[index]["lesion_ml"] > 0)


@pytest.mark.parametrize(("changes", "warnings", "reason"), [
    ({}, {"c4": ["less than a head"]}, "less than a head"),
    ({4: {"ml": 0.0}}, {}, "the mask is empty"),
    ({4: {"ml": 200.0}}, {}, "larger than nearly all others"),
    ({4: {"ml": 0.1}}, {}, "smaller than nearly all others"),
    ({4: {"shift": 3}}, {}, "50% of the mask lies in air: do mask and scan fit?"),
    ({4: {"shift": 1}}, {}, ""),  # a sixth
])
def test_odd_cases_are_found(changes, warnings, reason):
    found = cases_page.odd_cases(Data(changes, warnings))
    assert [i for i, reasons in enumerate(found) if reasons] == ([4] if reason else [])
    assert found[4] == ([reason] if reason else [])


def test_the_page_holds_every_case_and_nothing_from_elsewhere(tiny_data, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    (folder / cases_page.PAGE).unlink(missing_ok=True)
    data = cases_page.PreparedData(folder)
    monkeypatch.setattr(cases_page, "odd_cases", lambda data: [["<odd>"] if i == 1 else [] for i in range(len(data))])
    page = cases_page.write_page(folder).read_text()
    names = [row["case"] for row in data.rows]
    assert data.info["source"]["format"] == "synthetic" and "a sheet that a plane cuts looks like a rod" in page
    assert page.count("data:image/jpeg;base64,") == len(names) and "http-equiv" in page and "https://" not in page
    first = min(names, key=lambda name: page.index(f"<figcaption>{name}:"))
    assert first == names[1] and "&lt;odd&gt;" in page
    assert f"{data.rows[0]['lesion_ml']:.2f} mL" in page
    affine = np.array(data.rows[0]["conformed_affine"]).reshape(4, 4)
    outlined = thumbnail(data.image(0)[0], data.read(0, "mask"), affine, cases_page.HEIGHT, cases_page.QUALITY, False)
    assert base64.b64encode(outlined).decode() in page
    assert cases_page.write_page(folder) is None  # it is there already
    (folder / cases_page.PAGE).write_text(page.replace(" outlined -->", " -->"))  # of an earlier version, filled
    assert cases_page.write_page(folder).read_text() == page
    monkeypatch.setattr(cases_page, "MOST", 3)
    (folder / cases_page.PAGE).unlink()
    assert cases_page.write_page(folder).read_text().count("data:image/jpeg") == 3
