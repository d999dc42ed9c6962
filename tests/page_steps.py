"""The page's steps, run by Node."""

import base64
import gzip
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from meshnet import ROOT
from meshnet.cohort.facts import head_facts
from meshnet.inference.models import load_models
from meshnet.inference.scan import read_case, segment_case
from meshnet.kernels.wasm import MODULE
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.ours import DESCRIP, DESCRIP_2, MADE_OF, SIGNATURE

STEPS = ROOT / "meshnet/sharing/page/node.js"
ALLOWED = 30_000  # voxels marked or not, of which one may differ


class Page:
    """A process of Node that answers requests (see ``node.js``). Skips the test where there is no Node."""

    def __init__(self):
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node is not installed, so the page's steps are not tested")
        self.process = subprocess.Popen([node, str(STEPS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        encoding="utf-8")
        self.folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)
        self.folder.cleanup()

    def ask(self, what: str, **request) -> dict:
        self.process.stdin.write(json.dumps({"what": what, "engine": str(MODULE), **request}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def network(self, model, volume: np.ndarray, **more) -> tuple[np.ndarray, dict]:
        """Probabilities (K, X, Y, Z) of a volume (C, X, Y, Z), and what else was answered."""
        given, out = Path(self.folder.name) / "volume", Path(self.folder.name) / "out"
        np.ascontiguousarray(volume).tofile(given)
        answer = self.ask("network", model=str(model), volume=str(given), shape=list(volume.shape[1:]), out=str(out),
                          **more)
        assert "error" not in answer, answer
        return np.fromfile(out, np.float32).reshape(-1, *volume.shape[1:]), answer


def content(saved):
    """The bytes of a file that the page saved, as ``drive.js`` found it, unpacked."""
    return gzip.decompress(base64.b64decode(saved["content"]))


def check_mask(page, paths, model, tmp_path, voxels=None, within=1e-3, **settings):
    """The mask of a case by both, and probabilities ``within`` so much; returns what the page's steps reported."""
    models = load_models([model], device="cpu")
    case = read_case(paths, models)
    expected = segment_case(case, models, probabilities=True, **settings)
    mask, probability = tmp_path / "mask.nii", tmp_path / "probability.nii"
    answer = page.ask("segment", model=str(model), scans=[str(path) for path in paths], mask=str(mask),
                      probability=str(probability), settings=settings)
    assert "error" not in answer, answer
    found, differ = written_alike(mask.read_bytes(), expected.mask)
    marked = max(voxels or 0, np.count_nonzero(found))
    assert differ <= max(1, marked / ALLOWED), f"{differ} of {marked} voxels"
    written_alike(probability.read_bytes(), expected.probabilities)
    apart = nib.load(probability).get_fdata() - expected.probabilities.get_fdata()
    assert np.abs(apart).max() < within
    volume, affine = case.inputs[0][0]
    assert abs(answer["middle_mm"] - head_facts(volume[0], affine)["middle_mm"]) < 0.01
    if not differ:
        assert [answer[key] for key in ("volume_ml", "lesions", "largest_ml")] == [
            expected.volume_ml, expected.lesions, expected.largest_ml]
        assert (*answer["warnings"], *answer["remarks"]) == expected.remarks
        assert answer["quality"] == expected.quality
        assert answer["quality_from"].pop("learned") == expected.learned
        assert answer["quality_from"] == pytest.approx(expected.evidence.rounded(), rel=1e-3, abs=1.1e-3)
    return answer | {"differ": int(differ)}


def written_alike(content: bytes, image) -> tuple[np.ndarray, int]:
    """The voxels of a file that the page wrote, and how many are not those of ``image``. What stands before them is the
    same, but for their checksum where one differs."""
    wanted, kind = image.to_bytes(), image.get_data_dtype()
    head = len(wanted) - kind.itemsize * int(np.prod(image.shape))
    found, other = (np.frombuffer(each[head:], kind) for each in (content, wanted))
    differ = np.count_nonzero(found != other)
    text = DESCRIP_2 if isinstance(image, nib.Nifti2Image) else DESCRIP
    assert MADE_OF.match(content[text])
    start = text.start + len(SIGNATURE) + 1
    summed = slice(start, start + 8)
    if differ:
        assert content[summed] != wanted[summed]
        content = content[:start] + wanted[summed] + content[summed.stop:]
    assert content[:head] == wanted[:head]
    return found, differ


def bad_files() -> dict[str, bytes]:
    """Files that cannot be segmented, by name."""
    shape, data = (6, 5, 4), np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    sound = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])).to_bytes()
    second = nib.Nifti2Image(data, np.diag([2.0, 2, 2, 1])).to_bytes()
    packed = gzip.compress(sound)

    def changed(form=nib.Nifti1Image, values=None, after=b"", **fields):
        image = form(np.zeros(shape, np.int16) if values is None else values, np.diag([2.0, 2, 2, 1]))
        header = image.header
        header["vox_offset"] = len(header.binaryblock) + 4
        for name, value in fields.items():
            header[name] = value
        voxels = (data if values is None else values).tobytes(order="F")
        return header.binaryblock + bytes(4) + voxels + after

    floats = data.astype(np.float32)
    nan, infinite, huge, tiny = (floats.copy() for _ in range(4))
    nan[1, 1, 1], infinite[2, 2, 2], huge[0, 0, 0] = np.nan, -np.inf, 1e35
    tiny *= 1e-40
    extended = changed(vox_offset=400)  # of 48 bytes, which each of these says otherwise

    def extension(size, start=extended[:348] + b"\1\0\0\0"):
        return start + np.array([size, 4], np.int32).tobytes() + bytes(40) + extended[352:]

    rows = {"srow_x": [2, 0, 0, 0], "srow_y": [2, 0, 0, 0], "srow_z": [0, 0, 2, 0]}
    found = {
        "empty.nii": b"", "text.nii": b"this is no scan\n" * 100, "picture.nii.gz": b"\x89PNG\r\n" + bytes(500),
        "zip.nii": b"PK\x03\x04" + bytes(600), "zeros.nii": bytes(1000), "dicom.nii": bytes(128) + b"DICM" + bytes(900),
        "mgh.nii.gz": gzip.compress(bytes(400)), "short.nii": sound[:200], "headless.nii": sound[348:],
        "cut.nii": sound[:-10], "cut.nii.gz": packed[:-20], "half.nii.gz": packed[:len(packed) // 2],
        "broken.nii.gz": packed[:40] + bytes(8) + packed[48:], "nothing.nii.gz": gzip.compress(b""),
        "header.nii": sound[:352], "pair.nii": sound[:344] + b"ni1\0" + sound[348:], "cut2.nii": second[:-3],
        "short2.nii": second[:300], "ends2.nii": second[:8] + b"\r\n\x1a\r" + second[12:],
        "type0.nii": changed(datatype=0), "type1.nii": changed(datatype=1), "type99.nii": changed(datatype=99),
        "long.nii": changed(datatype=1536), "complex.nii": changed(datatype=32, after=bytes(2000)),
        "complex2.nii": changed(datatype=1792, after=bytes(2000)),
        "colour.nii": changed(datatype=128, after=bytes(2000)),
        "colour4.nii": changed(datatype=2304, after=bytes(2000)), "offset.nii": changed(vox_offset=20),
        "nan_offset.nii": changed(vox_offset=np.nan), "endless.nii": changed(vox_offset=np.inf),
        "inter.nii": changed(scl_slope=1, scl_inter=np.inf),
        "inter2.nii": changed(nib.Nifti2Image, scl_slope=2, scl_inter=np.nan),
        "none.nii": changed(sform_code=0, qform_code=0), "flat.nii": changed(sform_code=1, **rows),
        "nan_affine.nii": changed(sform_code=1, srow_x=[np.nan, 0, 0, 0]),
        "inf_affine.nii": changed(sform_code=1, srow_y=[0, 0, np.inf, 0]),
        "null_affine.nii": changed(sform_code=1, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4),
        "turn.nii": changed(sform_code=0, qform_code=1, quatern_b=3), "dim4.nii": changed(dim=[4, 3, 5, 4, 2, 1, 1, 1]),
        "dim5.nii": changed(dim=[5, 6, 5, 2, 1, 2, 1, 1]), "dim2.nii": changed(dim=[2, 12, 10, 1, 1, 1, 1, 1]),
        "dim0.nii": changed(dim=[0, 6, 5, 4, 1, 1, 1, 1]), "empty_axis.nii": changed(dim=[3, 0, 5, 4, 1, 1, 1, 1]),
        "negative.nii": changed(dim=[3, -6, 5, 4, 1, 1, 1, 1]), "larger.nii": changed(dim=[3, 600, 500, 4, 1, 1, 1, 1]),
        "nan.nii": changed(values=nan), "infinite.nii": changed(values=infinite), "huge.nii": changed(values=huge),
        "tiny.nii": changed(values=tiny), "black.nii": changed(values=data * 0), "slope.nii": changed(scl_slope=1e36),
        "metre.nii": changed(xyzt_units=1, srow_x=[20, 0, 0, 0]), "far.nii": changed(srow_x=[2, 0, 0, 3e6]),
        "micrometre.nii": changed(xyzt_units=3),
        "extension.nii": extension(100_000), "extension0.nii": extension(0), "extension7.nii": extension(-16),
        "extension2.nii": second[:540] + b"\1\0\0\0" + np.array([560], ">i4").tobytes() + bytes(40),
        "junk.nii.gz": packed + b"junk", "junk2.nii.gz": packed + bytes(9) + b"\x1f\x8b\7" + bytes(20),
        "second.nii.gz": packed + packed[:-9], "sum.nii.gz": packed[:-8] + bytes(4) + packed[-4:],
        "length.nii.gz": packed[:-1] + b"\1",
        "black2.nii": changed(nib.Nifti2Image, values=data * 0),
    }
    assert len(found) >= 40
    return found


def scan(path, shape=(40, 44, 36), tilt=0.0, sizes=(2.0, 2.2, 2.6), form=nib.Nifti1Image, seed=0):
    """Write a scan with something like a head in it, and a bright part."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in shape], indexing="ij"))
    data = np.where((grid ** 2).sum(0) < 1, 300 + 90 * generator.standard_normal(shape), 5 * generator.random(shape))
    data += 500 * (((grid - 0.3) ** 2).sum(0) < 0.06)
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sizes) @ np.diag([-1, 1, 1])
    nib.save(form(np.clip(data, 0, None).astype(np.int16), affine), path)
    return path


def model_of(folder, norm, channels=("T2w",), classes=("background", "lesion"), **card):
    """Write a small model with random weights."""
    torch.manual_seed(3)
    network = MeshNet(in_channels=len(channels), classes=len(classes), channels=5, dilations=[1, 2, 4, 2, 1], norm=norm)
    save_model(folder, network, Card(list(channels), list(classes), **{"voxel_mm": 4.0, "shape": [30, 32, 28], **card}))
    return folder
