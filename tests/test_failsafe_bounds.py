"""Bounded work: what a file claims costs little, what cannot be looked at whole is refused by name, and no page fetches
anything"""
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sads_jax.core.errors import DataError, ImageError, ParamsError, SADSError
from sads_jax.core.params import MaskZone, TileSpec, load_params, parse_params
from sads_jax.core.pictures import FORMATS, open_picture, picture_bytes
from sads_jax.core.settings import Settings
from sads_jax.core.yaml_text import read_yaml
from sads_jax.data.formats import read_mask
from sads_jax.data.images import image_size, read_image, tile_windows
from sads_jax.models.pretrained import read_legacy_pth

ROOT = Path(__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(hello) show\nshowpage\n%%EOF\n"


def encoded(image, fmt="PNG", **kw):
    out = BytesIO()
    image.save(out, fmt, **kw)
    return out.getvalue()


def black(side, mode="I;16"):
    "A PNG of side x side black pixels, a thousandth of its size in memory"
    return encoded(Image.new(mode, (side, side)))


def claiming(side):
    "A PNG that says of itself that it is side x side px"
    data = black(20)
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


# -- Photographs

def test_a_hundred_megapixels_are_refused_before_a_pixel_is_decoded():
    assert Settings().max_megapixels == 25
    data = claiming(10_000)
    tracemalloc.start()
    with pytest.raises(ImageError, match="10000 x 10000 px is 100 megapixels, over the limit of 25 megapixels"):
        read_image(data)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


PEAK = """
import sys
from pathlib import Path
from sads_jax.data.images import read_image
held = lambda what: next(int(l.split()[1]) for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(what))*1024
src, before = Path(sys.argv[1]).read_bytes(), held('VmRSS')
shape = read_image(src).shape
print(shape[0]*shape[1], held('VmHWM') - before)
"""  # noqa: E501


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_what_decoding_takes_is_a_few_bytes_a_pixel(tmp_path, mode):
    (tmp_path / "x.png").write_bytes(black(2500, mode))
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    out = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "x.png"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    pixels, peak = map(int, out.stdout.split())
    assert 3 * pixels < peak < 11 * pixels  # 3 of the result, up to 4 of Pillow's picture, and some strips


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
def test_strips_and_turning_read_what_pillow_reads(mode, orientation):
    from PIL import ImageOps
    pixels = np.random.default_rng(0).integers(0, 256, (600, 37, 3), np.uint8)  # three strips
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels).convert(mode), "TIFF" if mode in ("P", "CMYK") else "PNG", exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))
    assert (read_image(data) == want).all() and image_size(data) == want.shape[:2]


def test_every_sixteen_bit_value_is_rounded_as_a_division_says():
    x = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (read_image(encoded(Image.fromarray(x)))[..., 0] == np.round(x.astype(float) * 255 / 65535)).all()


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_further_frames_are_refused_by_name(tmp_path, fmt):
    frames = [Image.new("L", (40, 30), v) for v in (10, 90, 200)]
    path = tmp_path / "part.img"
    path.write_bytes(encoded(frames[0], fmt, save_all=True, append_images=frames[1:]))
    for read in read_image, image_size:
        with pytest.raises(ImageError) as e:
            read(path)
        assert str(e.value) == f"{path}: holds 3 frames. Save the one to be judged as a file of its own"
    path.write_bytes(encoded(frames[0], fmt))
    assert read_image(path).shape == (30, 40, 3)


def test_stereo_pairs_are_refused_and_previews_are_not():
    pair = encoded(
        Image.new("RGB", (64, 48), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")]
    )
    assert image_size(pair) == (48, 64)  # the second is of no declared kind, as what telephones append
    at = pair.rindex((0x030000).to_bytes(4, "little"))  # the first entry's kind: a baseline primary image
    with pytest.raises(ImageError, match="holds 2 frames"):
        image_size(pair[:at] + (0x020002).to_bytes(4, "little") + pair[at + 4:])  # two eyes (CIPA DC-007, table 4)


def test_a_device_or_a_pipe_is_no_photograph(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in "/dev/zero", tmp_path / "pipe.png":
        with pytest.raises(ImageError, match="is no regular file"):
            read_image(path)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(encoded(Image.new("L", (40, 40))))
    os.truncate(path, 10**12)  # sparse
    with pytest.raises(ImageError, match="larger than"):
        picture_bytes(path, max_megapixels=1)


# -- Masks

def test_no_name_starts_another_program(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(EPS)
    Image.init()
    assert Image.open(path).format == "EPS"  # what Pillow makes of it
    with pytest.raises(ImageError, match="not an image in a known format"):
        open_picture(path)
    with pytest.raises(DataError, match="mask cannot be read: not an image in a known format"):
        read_mask(path, 30, 40)
    with pytest.raises(ParamsError, match="not an image in a known format"):
        parse_params({"decision": {"zones": [{"kind": "mask", "name": "rim", "path": str(path)}]}})
    assert "EPS" not in FORMATS


def test_a_giant_mask_is_refused_from_its_header(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(claiming(20_000))
    with pytest.raises(DataError, match="mask is 20000 x 20000 px but its image is 40 x 30 px"):
        read_mask(path, 30, 40)
    with pytest.raises(ValueError, match="400 megapixels, over the limit"):
        MaskZone(name="rim", kind="mask", path=str(path))


def test_every_picture_is_opened_in_one_place():
    opened = [
        p.relative_to(ROOT).as_posix() for p in (ROOT / "sads_jax").rglob("*.py") if "Image.open(" in p.read_text()
    ]
    assert not opened, opened


# -- Tiles

def test_a_strip_is_not_cut_into_tens_of_thousands():
    with pytest.raises(ImageError, match=r"strip.png: .* would be cut into [\d,]+ tiles .* raise image.tile.most"):
        tile_windows(16, 694_000 * 9, ((64, 64),), TileSpec(overlap=48), "strip.png")
    assert len(tile_windows(16, 60_000, ((64, 64),), TileSpec(overlap=48))) < 4096
    with pytest.raises(ImageError, match="over the limit of 3"):
        tile_windows(300, 300, ((64, 64),), TileSpec(overlap=32, most=3))


# -- YAML

def laughs(levels=9, wide=9):
    names = "abcdefghijk"[:levels]
    return "a: &a [ha, ha]\n" + "\n".join(
        f"{y}: &{y} [{', '.join(['*' + x] * wide)}]" for x, y in zip(names, names[1:])
    )


def test_references_do_not_multiply(tmp_path):
    (tmp_path / "params.yaml").write_text(laughs())
    assert len(laughs()) < 500
    with pytest.raises(ParamsError, match="values once its references are written out"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: 3")
    with pytest.raises(ParamsError, match="values once its references are written out"):
        load_params(tmp_path / "params.yaml", ["data.defects={" + laughs().replace("\n", ", ") + "}"])


@pytest.mark.parametrize(
    "text, what",
    [("a: &a [*a]", "refers to itself"), ("[" * 5000, "nested more than 50 levels"),
        ("a: [" + "1, " * 30_000 + "1]", "more than 20,000 values"), ("a: " + "9" * 6000, "not valid YAML"),
        ("a: " + "1:" * 500 + "1", "more than 64 bits"), ("a: 2024-13-45", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("x" * 2**21, "over the limit")],
)
def test_yaml_that_grows_is_refused(text, what):
    with pytest.raises(ParamsError, match=what):
        read_yaml(text, "params.yaml")


def test_a_key_twice_is_an_error_with_both_lines(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\ndecision:\n  rules: [{name: a}]\nsplit: {train: .5,\n  train: .6}\ndecision: {}\n")
    with pytest.raises(
        ParamsError, match="'decision' is given twice, in line 2 and in line 6. Join the two, or remove one"
    ):
        load_params(path)
    path.write_text("seed: 1\nsplit: {train: .5,\n  train: .6}\n")
    with pytest.raises(ParamsError, match="'train' is given twice, in line 2 and in line 3"):
        load_params(path)


def test_a_reference_is_a_copy():
    tree = read_yaml("a: &s {x: 1}\nb: *s\nc: {<<: *s, y: 2}", "here")
    assert tree == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}} and tree["a"] is not tree["b"]


# -- Weights

def legacy_pth(path, tensors, storages):
    "A file as torch < 1.6 wrote it: names to (storage key, offset, size, stride), and what the storages hold"
    import collections
    import pickle

    class Storage:
        def __init__(self, key): self.key = key

    class Tensor:
        def __init__(self, key, *layout): self.args = Storage(key), *layout

        def __reduce__(self): return _rebuild_tensor_v2, (*self.args, False, collections.OrderedDict())

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", FloatStorage, obj.key, "cpu", 0, None) if isinstance(obj, Storage) else None

        def save_global(self, obj, name=None):
            module = {"_rebuild_tensor_v2": "torch._utils", "FloatStorage": "torch"}.get(obj.__name__, obj.__module__)
            self.write(b"c" + f"{module}\n{obj.__name__}\n".encode())

        dispatch = pickle._Pickler.dispatch | {type: save_global, type(lambda: 0): save_global}

    class FloatStorage: pass
    def _rebuild_tensor_v2(): pass
    with open(path, "wb") as f:
        for what in 0x1950A86A20F9469CFC6C, 1001, {}:
            pickle.dump(what, f, 2)
        Pickler(f, 2).dump({name: Tensor(*t) for name, t in tensors.items()})
        pickle.dump(sorted(storages), f, 2)
        for key in sorted(storages):
            f.write(np.int64(len(storages[key])).tobytes() + np.asarray(storages[key], np.float32).tobytes())
    return path


def test_a_tensor_is_the_view_that_its_strides_say(tmp_path):
    path = legacy_pth(tmp_path / "a.pth",
        {"w": ("0", 1, (2, 3), (3, 1)), "t": ("0", 0, (3, 2), (1, 3)), "none": ("0", 7, (0, 2), (2, 1))},
        {"0": np.arange(7)})
    got = read_legacy_pth(path)
    assert (
        got["w"].tolist() == [[1, 2, 3], [4, 5, 6]]
        and got["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
        and got["none"].shape == (0, 2)
    )


@pytest.mark.parametrize(
    "tensor, what",
    [(("0", 0, (8,), (1,)), "reaches beyond its 7 numbers"), (("0", 5, (3,), (1,)), "reaches beyond"),
        (("0", 0, (2,), (-1,)), "stride"), (("0", -3, (2,), (1,)), "offset -3"),
        (("0", 0, (10**5, 10**5), (0, 0)), "reaches beyond"), (("0", 0, (2**40,), (1,)), "size"),
        (("0", 0, (2, 2), (1,)), "stride"), (("0", 0, (1.5,), (1,)), "size"), (("0", 0, (1,) * 40, (1,) * 40), "size"),
        (("1", 0, (1,), (1,)), "'0'")],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, tensor, what):
    with pytest.raises(SADSError, match=what):
        read_legacy_pth(legacy_pth(tmp_path / "a.pth", {"w": tensor}, {"0": np.arange(7)}))


def test_damaged_weights_are_refused_and_never_crash(tmp_path):
    path = legacy_pth(tmp_path / "a.pth", {"w": ("0", 1, (2, 3), (3, 1))}, {"0": np.arange(7)})
    whole, rng, bad = path.read_bytes(), np.random.default_rng(0), tmp_path / "b.pth"
    for _ in range(300):
        data = bytearray(whole[:rng.integers(1, len(whole) + 1)])
        for at in rng.integers(0, len(data), rng.integers(0, 4)):
            data[at] = rng.integers(256)
        bad.write_bytes(bytes(data))
        try: found = read_legacy_pth(bad)
        except SADSError: continue
        assert sum(t.size for t in found.values()) <= 7
    bad.write_bytes(b"\x80\x02r\xff\xff\xff\x7fK\x01.")  # a memo of 2**31 entries
    with pytest.raises(SADSError, match="an index of"):
        read_legacy_pth(bad)


# -- Pages

def test_pages_run_nothing_and_fetch_nothing():
    "One page has the policy; all others extend it, and only the explorer may run the script that it holds"
    templates = {
        p.relative_to(ROOT / "sads_jax").as_posix(): p.read_text()
        for p in (ROOT / "sads_jax").rglob("templates/*.html.jinja")
    }
    page = templates["core/templates/page.html.jinja"]
    policy = re.search(r'Content-Security-Policy" content="{% block policy %}(.+?){% endblock %}"', page)[1]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert [name for name, text in templates.items() if "<!doctype html>" in text] == ["core/templates/page.html.jinja"]
    loose = {name for name, text in templates.items() if "block policy" in text or "<script" in text}
    assert loose == {"core/templates/page.html.jinja", "evaluation/templates/explorer.html.jinja"}
    assert not [name for name, text in templates.items() if "|safe" in text or "autoescape" in text]
    modules = [p.name for p in (ROOT / "sads_jax").rglob("*.py") if "<!doctype html>" in p.read_text()]
    assert not modules  # whoever writes a page fills a template


def test_the_served_description_names_no_other_host():
    import re

    import httpx
    from server_kit import start, stop
    p, url = start("load")
    try:
        page = httpx.get(f"{url}/docs")
        assert page.status_code == 200 and "POST /predict" in page.text and "InspectionReport" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert not re.findall(r"https?:|//\w|src=|@import|url\(", page.text.replace("http&#58;//HOST:PORT", ""))
        for link in re.findall(r'href="([^#"]+)"', page.text):
            assert httpx.get(f"{url}/{link}").status_code == 200
        assert [httpx.get(f"{url}{path}").status_code for path in ("/redoc", "/docs/oauth2-redirect")] == [404, 404]
    finally:
        code, left, out = stop(p)
    assert (code, left) == (0, []), out


# -- Tracking and pins

def test_photographs_leave_only_when_asked():
    assert Settings().track_photographs is False
    source = (ROOT / "sads_jax/orchestrators/stages.py").read_text()
    assert source.count("run.artifact(") == 1 and "if settings.track_photographs: run.artifact(" in source


def test_every_pin_has_hashes():
    text = (ROOT / "constraints.txt").read_text()
    pins = [block for block in text.replace("\\\n", " ").splitlines() if block.strip()]
    assert len(pins) > 150 and all("==" in pin and "--hash=sha256:" in pin for pin in pins)
    assert "torch==" not in text and "sys_platform" in text
