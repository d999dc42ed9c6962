"""share.py web: what it writes, refuses, says, and pushes as a static Space."""

import base64
import gzip
import hashlib
import json
import re
import shutil

import numpy as np
import page_steps
import pytest
import torch
from conftest import run_script_file
from page_steps import STEPS

from meshnet import ROOT
from meshnet.errors import UserError
from meshnet.kernels.wasm import MODULE
from meshnet.networks.build import load_model
from meshnet.networks.card import Card
from meshnet.networks.folder import BUILT_IN, save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import to_web
from meshnet.sharing.about import markdown

PIECES = ROOT / "meshnet/sharing/page"


def model_of(folder, shape=(20, 20, 20), **values):
    torch.manual_seed(0)
    network = MeshNet(channels=4, dilations=[1, 2, 1], **values)
    save_model(folder, network, Card(["T2w"], ["background", "lesion"], shape=list(shape), metrics={"dice": 0.5}))
    return folder


def constant(text, name):
    """The value of a JavaScript constant of JSON."""
    return json.loads(re.search(rf"^const {name} = (.*);$", text, re.MULTILINE).group(1))


@pytest.mark.parametrize("name", ["meshnet16-synthetic", "meshnet16-cascade"])
def test_a_page_holds_all_that_it_needs(tmp_path, name):
    folder = BUILT_IN / name
    second = (folder / "model.safetensors").stat().st_size * 4 / 3 * (folder / "first").is_dir()  # as text
    said = to_web.write_page(folder, tmp_path / "page", notice="For <study> 7 & nothing else")
    page = tmp_path / "page"
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "index.html: open it in a browser" in said
    sizes = {path.name: path.stat().st_size for path in page.iterdir()}
    assert sum(sizes.values()) - second <= 2_500_000  # 3.5 MB is the limit
    assert sum(sizes.values()) - second - sizes["niivue.js"] <= 1_400_000
    assert sizes["dcm2niix.js"] > 400_000 and "dcm2niix.js" not in re.findall(r'src="([^"]+)"', text)  # only for DICOM
    assert "CharLS" in (page / "LICENSES.txt").read_text(encoding="utf-8")
    data, model = ((page / name).read_text(encoding="utf-8") for name in ("data.js", "model.js"))
    assert base64.b64decode(constant(data, "ENGINE")) == MODULE.read_bytes()
    weights = base64.b64decode(constant(model, "MODEL")["weights"])
    assert weights == (folder / "model.safetensors").read_bytes()
    assert "For &lt;study&gt; 7 &amp; nothing else" in text and "<study>" not in text and "@" not in text
    assert {"What it reaches", "What it can and cannot do"} <= set(re.findall("<h3>(.*?)</h3>", text))
    assert "sdk: \"static\"" in (page / "README.md").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert all((page / name).is_file() for name in named if name != "data:,") and len(named) > 6
    # Nothing from elsewhere, and the rule that enforces it, before anything is loaded.
    assert not re.findall(r"https?://|//cdn", text) and text.index("Content-Security-Policy") < text.index("page.css")
    assert "connect-src 'none'" in text and "default-src 'none'" in text and "unsafe-inline" not in text
    assert "webrtc 'block'" in text and re.findall(r'<script src="([^"]+)"', text)[0] == "seal.js"
    for path in page.glob("*.js"):  # what no policy governs: opening an address or a window, packets
        if path.name != "dcm2niix.js":  # Emscripten asks where it lies
            leads = r"\blocation\b|\bwindow\.open\b|\biframe\b|new \w*RTC"
            assert not re.search(leads, path.read_text(encoding="utf-8")), path
    assert set(re.findall(r'<a [^>]*href="([^"]+)"', text)) == {"LICENSES.txt"}
    assert "<script>" not in text and " style=" not in text and " onclick=" not in text
    to_web.write_page(folder, page, title="Again")  # an earlier page is replaced
    assert "<title>Again</title>" in (page / "index.html").read_text(encoding="utf-8")


def test_code_of_others_is_what_was_published():
    packages = json.loads((to_web.VENDOR / "vendored.json").read_text(encoding="utf-8"))["packages"]
    files = {name: known for package in packages for name, known in package["files"].items()}
    for name, known in files.items():
        content = (to_web.VENDOR / name).read_bytes()
        packed = "sha256 of what is packed" in known
        assert hashlib.sha256(gzip.decompress(content) if packed else content).hexdigest() == known[
            "sha256 of what is packed" if packed else "sha256"], name
    assert set(files) | {"LICENSES.txt", "vendored.json"} == {path.name for path in to_web.VENDOR.iterdir()}


def test_the_3d_view_is_in_the_page_unless_left_out(tmp_path):
    """NiiVue lies packed beside the page, which does not load it before it is asked to."""
    page, model = tmp_path / "page", model_of(tmp_path / "model")
    to_web.write_page(model, page)
    text, read = (page / "index.html").read_text(encoding="utf-8"), (page / "niivue.js").read_text(encoding="utf-8")
    packed = base64.b64decode(constant(read, "NIIVUE"))
    assert packed == (to_web.VENDOR / "niivue.js.gz").read_bytes() and "niivue.js" not in text
    # What no policy governs, as in the page's own scripts: it reads its address, and goes to no other one.
    leads = r"\blocation\b(?! ?=\d| ?= \d|\.href\)|\.origin&| outside)|\bwindow\.open\b|\biframe\b|new \w*RTC"
    assert not (found := re.findall(leads, gzip.decompress(packed).decode())), found  # location=0 is of shaders
    assert "Copyright (c) 2021, Niivue" in (page / "LICENSES.txt").read_text(encoding="utf-8")
    assert re.search(r'<div class="controls" ?>\s*<button id="solid"', text)
    run_script_file("share.py", "web", model, page, "--no-niivue")
    text, licences = ((page / name).read_text(encoding="utf-8") for name in ("index.html", "LICENSES.txt"))
    assert not (page / "niivue.js").exists() and re.search(r'<div class="controls" hidden>\s*<button id="solid"', text)
    assert "NiiVue" not in licences and "CharLS" in licences


def test_a_page_that_is_too_large_says_what_to_leave_out(tmp_path, monkeypatch):
    model = model_of(tmp_path / "model")
    for most, words in ((2_000_000, "--no-niivue"), (500_000, "share.py onnx")):
        monkeypatch.setattr(to_web, "MOST_PAGE", most)
        with pytest.raises(UserError, match=words):
            to_web.write_page(model, tmp_path / "page")
    monkeypatch.setattr(to_web, "MOST_PAGE", 2_000_000)
    to_web.write_page(model, tmp_path / "page", niivue=False)


def test_what_cannot_run_in_a_page_is_refused(tmp_path):
    model = model_of(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    large = model_of(tmp_path / "large", (512, 512, 512), norm="instance")
    half = model_of(tmp_path / "half")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(half / "model.safetensors")
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, half / "model.safetensors")
    other = model_of(tmp_path / "unet")
    card = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(card | {"name": "unet"}))
    for name, folder, words in ((model, "other", "is not empty and holds no page"), (model, "file", "is a file"),
                                (large, "page", "GB for a grid of 512 x 512 x 512"), (half, "page", "expected F32"),
                                (other, "page", "share.py onnx")):
        with pytest.raises(UserError, match=words):
            to_web.write_page(name, tmp_path / folder)
    assert not (tmp_path / "page").exists()


def test_the_command(tmp_path):
    model = model_of(tmp_path / "model", norm="instance")
    import nibabel as nib

    generator = np.random.default_rng(0)
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(generator.random((30, 30, 30), np.float32), np.eye(4)), scan)
    said = run_script_file("share.py", "web", model, tmp_path / "page", "--scan", scan, "--title", "Mine").stdout
    assert re.search(r"[01] of 27000 voxels differ|Node is not installed", said), said
    assert said.splitlines()[-1] == f"Next: open {tmp_path}/page/index.html in a browser"


def test_a_page_decides_as_infer_does_with_the_same_weights(tmp_path):
    """The card keeps a threshold for each weights file; what else it says of decisions is of the best weights."""
    made = page_steps.model_of(tmp_path / "model", "instance", scaling="lesions_bright", threshold=0.3, sure=0.5,
                               contrasts={"T2w": {"sure": 0.6}}, thresholds={"model_ema.safetensors": 0.52})
    averaged = made / "model_ema.safetensors"
    shutil.copyfile(made / "model.safetensors", averaged)
    scan, page = page_steps.scan(tmp_path / "scan.nii"), tmp_path / "page"
    for weights in (made / "model.safetensors", averaged):
        to_web.write_page(weights, page)
        card = Card.from_dict(constant((page / "model.js").read_text(encoding="utf-8"), "MODEL")["card"])
        own = load_model(weights)[1]
        assert [card.decision(look) for look in (None, "T2w")] == [own.decision(look) for look in (None, "T2w")]
        assert card.threshold == (0.52 if weights == averaged else 0.3) and not card.thresholds
        said = to_web.compare(weights, [scan], page)
        assert re.search(r"[01] of 63360 voxels differ|Node is not installed", said), said
    # It is the page's own card that is compared.
    other = json.loads((page / "model.js").read_text(encoding="utf-8").removeprefix("const MODEL = ").rstrip(";\n"))
    other["card"]["threshold"] = 0.99
    (page / "model.js").write_text(f"const MODEL = {json.dumps(other)};\n", encoding="utf-8")
    said = to_web.compare(averaged, [scan], page)
    assert re.search(r" [1-9]\d+ of 63360 voxels differ|Node is not installed", said), said


def test_a_page_shows_the_scores_of_its_own_weights(tmp_path):
    """Of averaged weights those of the epoch that they were kept at; of weights without any it says so."""
    made = page_steps.model_of(tmp_path / "model", "instance", metrics={"val_dice": 0.123})
    (made / "test_cases.csv").write_text("subject,dice\na,0.321\nb,0.321\n", encoding="utf-8")
    rows = [{"epoch": 1, "val_dice": 0.1, "val_dice_ema": 0.7, "val_dice_swept_ema": 0.71},
            {"epoch": 2, "val_dice": 0.2, "val_dice_ema": 0.6, "val_dice_swept_ema": 0.72},
            {"epoch": 3, "val_dice": 0.3, "val_dice_ema": 0.5, "val_dice_swept_ema": 0.4}]
    for name in ("model_ema", "last", "other"):
        shutil.copyfile(made / "model.safetensors", made / f"{name}.safetensors")

    def text(name):
        to_web.write_page(made / f"{name}.safetensors", tmp_path / "page")
        kept = constant((tmp_path / "page/model.js").read_text(encoding="utf-8"), "MODEL")["card"]["metrics"]
        assert kept == ({"val_dice": 0.123} if name == "model" else {})
        page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
        return re.sub("<[^>]*>", " ", page[page.index("This model"):])

    assert "0.321 (0.000), 2 cases" in text("model") and "model.safetensors" not in text("model")
    assert "model_ema.safetensors , averaged over training: the scores of the run's best weights are not" in (
        averaged := text("model_ema")) and "No scores were recorded of these" in averaged and "0.321" not in averaged
    (made / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert re.search(r"epoch\s+1\s+val dice\s+0.700\s+val dice swept\s+0.710", text("model_ema"))
    assert "last.safetensors  of the last epoch: " in (last := text("last"))
    assert re.search(r"epoch\s+3\s+val dice\s+0.300\s+(?!val)", last)
    assert "No scores were recorded" in text("other")
    card = json.loads((made / "config.json").read_text(encoding="utf-8"))
    card["thresholds"] = {"model_ema.safetensors": 0.4}
    (made / "config.json").write_text(json.dumps(card), encoding="utf-8")
    assert re.search(r"epoch\s+2\s+val dice\s+0.600", text("model_ema"))  # chosen by the best threshold


def test_a_page_goes_to_a_space(server, tmp_path):
    model = model_of(tmp_path / "model")
    to_web.write_page(model, tmp_path / "page")
    said = run_script_file("share.py", "push", tmp_path / "page", "user/my-page", "--space").stdout
    assert "user/my-page" in said
    _, files = server.repos["space", "user/my-page"]["commits"][-1]
    assert set(files) == {path.name for path in (tmp_path / "page").iterdir()}
    assert files["README.md"].startswith(b"---\n") and b'sdk: "static"' in files["README.md"]
    said = run_script_file("share.py", "web", model, tmp_path / "one", "--space", "user/at-once", "--public").stdout
    assert "index.html: open it" in said and "/user/at-once" in said.splitlines()[-1]
    assert not server.repos["space", "user/at-once"]["private"] and server.repos["space", "user/my-page"]["private"]
    refused = run_script_file("share.py", "web", model, tmp_path / "two", "--space", "at-once", check=False)
    assert refused.returncode == 2 and not (tmp_path / "two").exists()
    refused = run_script_file("share.py", "push", model, "user/my-page", "--space", check=False)
    assert refused.returncode == 2 and "holds no page" in refused.stderr


def test_markdown_becomes_safe_html():
    text = markdown("A **bold** `x < y` [link](evil)\n\n- one\n  more\n- two & 3\n\n| a | b |\n|---|---|\n"
                    "| <i> | 2 |\n\n<script>alert(1)</script>\n\n```\ncode\n```")
    assert "<strong>bold</strong>" in text and "<code>x &lt; y</code>" in text and "evil" not in text
    assert "<li>one more</li><li>two &amp; 3</li>" in text and "<td>&lt;i&gt;</td>" in text
    assert "<script" not in text and "alert" not in text


def test_scripts_are_short_and_named_once():
    """House rules for JavaScript: files of at most 350 lines, and no name twice, since a worker has one scope."""
    for path in PIECES.glob("*.js"):
        assert path.read_text(encoding="utf-8").count("\n") <= 350, path
    listed = re.search(r"const STEPS = (\[.*?\]);", STEPS.read_text(encoding="utf-8")).group(1)
    assert tuple(json.loads(listed)) == to_web.STEPS[:-1]
    for parts in (to_web.STEPS, to_web.PAGE):
        names = [name for part in parts for name in
                 re.findall(r"^(?:async )?(?:function|class|const) (\w+)", to_web.script(part), re.MULTILINE)]
        assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]


def test_the_page_and_its_worker_each_have_all_functions_that_they_call():
    """They have a scope each, and some scripts in common."""
    scripts = {name: to_web.script(name) for name in dict.fromkeys((*to_web.STEPS, *to_web.PAGE))}
    defined = {name: set(re.findall(r"^(?:async )?function (\w+)", text, re.MULTILINE))
               for name, text in scripts.items()}
    every = set().union(*defined.values())
    for parts in (to_web.STEPS, to_web.PAGE):
        own = set().union(*(defined[part] for part in parts))
        for part in parts:
            called = set(re.findall(r"(?<![\w.])(\w+)\(", re.sub(r"//.*", "", scripts[part])))
            given = " ".join(re.findall(r"^(?:async )?function \w+\((.*)\) \{$", scripts[part], re.MULTILINE))
            inner = set(re.findall(r"(?:const|let) (\w+) = ", scripts[part])) | set(re.findall(r"\w+", given)) | set(
                re.findall(r"^  (?:async )?(\w+)\(.*\) \{$", scripts[part], re.MULTILINE))
            assert not (called & every) - own - inner, part


@pytest.mark.parametrize("name", dict.fromkeys((*to_web.STEPS, *to_web.PAGE)))
def test_a_script_loses_comments_alone(name):
    """Lines that begin with // and lie in no template literal, before which the number of backticks is odd."""
    whole = (to_web.PARTS / f"{name}.js").read_text(encoding="utf-8").splitlines(keepends=True)
    comments = [number for number, line in enumerate(whole) if line.lstrip(" ").startswith("//")]
    assert to_web.script(name) == "".join(line for number, line in enumerate(whole) if number not in comments)
    code = ["" if number in comments else line for number, line in enumerate(whole)]
    assert all("".join(code[:number]).count("`") % 2 == 0 for number in comments)
