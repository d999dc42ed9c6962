"""The paper's own numbers come out as the paper lays them out."""

import csv
import io
import math

import pytest

from meshnet.crossval import tables
from meshnet.crossval.stats import Spread
from meshnet.crossval.tables import PAPER, Row

PAPER_TABLE = """\
| Model | Parameters | DICE ↑ | AVD ↓ | MCC ↑ |
| --- | ---: | ---: | ---: | ---: |
| MeshNet-26 | 147,474 | **0.876 (0.016)** | **0.245 (0.036)** | **0.760 (0.030)** |
| MeshNet-16 | 56,194 | 0.873 (0.007) | 0.249 (0.033) | 0.757 (0.013) |
| U-MAMBA-BOT | 7,351,400 | 0.870 (0.012) | 0.266 (0.053) | 0.750 (0.023) |
| MedNeXt-M | 17,548,963 | 0.868 (0.017) | 0.288 (0.094) | 0.745 (0.033) |
| SegResNet | 1,176,186 | 0.867 (0.005) | 0.268 (0.039) | 0.743 (0.011) |
| U-MAMBA-ENC | 7,514,280 | 0.865 (0.010) | 0.309 (0.080) | 0.740 (0.022) |
| MedNeXt-S | 5,201,315 | 0.861 (0.012) | 0.257 (0.054) | 0.729 (0.021) |
| Swin-UNETR | 18,346,844 | 0.859 (0.025) | 0.425 (0.283) | 0.730 (0.048) |
| MedNeXt-B | 10,526,307 | 0.855 (0.016) | 0.260 (0.039) | 0.718 (0.030) |
| U-KAN | 44,070,082 | 0.851 (0.013) | 0.321 (0.027) | 0.717 (0.025) |
| MeshNet-5 | 5,682 | 0.848 (0.023) | 0.280 (0.060) | 0.708 (0.042) |
| UNETR | 95,763,682 | 0.847 (0.014) | 0.397 (0.029) | 0.700 (0.027) |
| Residual U-Net | 1,979,610 | 0.836 (0.005) | 0.562 (0.495) | 0.685 (0.010) |
| V-Net | 45,597,898 | 0.798 (0.018) | 0.387 (0.047) | 0.614 (0.033) |
"""


def row(model, dice, avd=0.3, mcc=0.7, parameters=5682, **more):
    spreads = {"dice_macro": Spread(dice, 0.01, 3), "avd": Spread(avd, 0.02, 3), "mcc": Spread(mcc, math.nan, 1)}
    return Row(model, parameters, spreads, **more)


def test_the_papers_numbers_in_any_order_give_the_papers_table():
    assert tables.markdown(PAPER[::-1], beside=False) == PAPER_TABLE


def test_latex_of_the_papers_numbers():
    text = tables.latex(PAPER, "Results_1 & 95 %, p < 0.05", beside=False)
    lines = text.splitlines()
    assert r"\caption{Results\_1 \& 95 \%, p $<$ 0.05}" in lines
    assert lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 1
    assert r"Model & Parameters & DICE $\uparrow$ & AVD $\downarrow$ & MCC $\uparrow$ \\" in lines
    best = r"MeshNet-26 & 147{,}474 & \textbf{0.876 (0.016)} & \textbf{0.245 (0.036)} & \textbf{0.760 (0.030)} \\"
    assert lines[lines.index(r"\midrule") + 1] == best
    assert lines.index(r"\bottomrule") - lines.index(r"\midrule") == 15


def test_stars_remarks_and_the_papers_figures_beside():
    rows = [row("meshnet_5", 0.84, remark="†", stars={"dice_macro": "**", "mcc": "*"}), row("mine", 0.9, -0.1)]
    lines = tables.markdown(rows).splitlines()
    assert lines[0].endswith("| DICE, paper | AVD, paper | MCC, paper |")
    assert lines[2] == "| mine | 5,682 | **0.900 (0.010)** | **−0.100 (0.020)** | **0.700** | – | – | – |"
    assert lines[3] == (r"| meshnet_5† | 5,682 | 0.840 (0.010)\*\* | 0.300 (0.020) | **0.700**\* | 0.848 (0.023) | "
                        "0.280 (0.060) | 0.708 (0.042) |")
    latex = tables.latex(rows, "c")
    assert r"\begin{tabular}{lrrrrrrr}" in latex and r"& DICE, paper & AVD, paper & MCC, paper \\" in latex
    assert (r"meshnet\_5$^\dagger$ & 5{,}682 & 0.840 (0.010)$^{**}$ & 0.300 (0.020) & \textbf{0.700}$^{*}$ & "
            r"0.848 (0.023) & 0.280 (0.060) & 0.708 (0.042) \\") in latex
    assert r"\textbf{$-$0.100 (0.020)}" in latex
    assert "<td>0.840 (0.010)<sup>**</sup></td>" in tables.html(rows)
    assert tables.html([row("<b>&", 0.5)]).count("&lt;b&gt;&amp;") == 1


def test_csv_has_bare_numbers():
    lines = list(csv.DictReader(io.StringIO(tables.comma_separated([row("meshnet5", 0.84, stars={"avd": "*"})]))))
    assert lines[0]["dice_macro"] == "0.84"
    assert (lines[0]["avd_stars"], lines[0]["paper_avd_sd"], lines[0]["avd_n"]) == ("*", "0.06", "3")


@pytest.mark.parametrize(("name", "model"), [
    ("meshnet26", "MeshNet-26"), ("residual_unet", "Residual U-Net"), ("umamba_bot", "U-MAMBA-BOT"),
    ("swin_unetr", "Swin-UNETR"), ("vnet", "V-Net"), ("MedNeXt_S", "MedNeXt-S")])
def test_recipes_find_their_row_of_the_paper(name, model):
    assert tables.published(name).model == model


def test_what_the_paper_does_not_have():
    assert tables.published("meshnet21") is None
    assert tables.cell(Spread(math.nan, math.nan, 0)) == "–"
    assert tables.cell(Spread(-0.0004, 0.01, 3)) == "0.000 (0.010)"
    unknown = Row("x", None, {name: Spread(math.nan, math.nan, 0) for name in ("dice_macro", "avd", "mcc")})
    assert tables.ordered([unknown, PAPER[0]])[0] is PAPER[0]
    assert "| x | – | – | – | – |" in tables.markdown([unknown], beside=False)
