"Bounded work: what a file claims costs little, what cannot be looked at whole is refused by name, and no page fetches anything"
import os
import subprocess
import sys
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sads_jax.core.errors import DataError, ImageError, ParamsError
from sads_jax.core.params import MaskZone, TileSpec, load_params, parse_params
from sads_jax.core.pictures import FORMATS, open_picture, picture_bytes
from sads_jax.core.settings import Settings
from sads_jax.core.yaml_text import read_yaml
from sads_jax.data.formats import read_mask
from sads_jax.data.images import image_size, read_image, tile_windows

ROOT = Path(__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n(hello) show\nshowpage\n%%EOF\n"


def encoded(image, fmt="PNG", **kw):
    out = BytesIO()
    image.save(out, fmt, **kw)
    return out.getvalue()


def small_giant(side, mode="I;16"):
    "A PNG of side x side black pixels: a few hundred kB at most"
    return encoded(Image.new(mode, (side, side)))


# -- Photographs

def test_a_hundred_megapixels_are_refused_before_a_pixel_is_decoded():
    assert Settings().max_megapixels == 25
    data = small_giant(10_000)
    assert len(data) < 250_000
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
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_what_decoding_takes_is_a_few_bytes_a_pixel(tmp_path, mode):
    (tmp_path / "x.png").write_bytes(small_giant(3000, mode))
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    out = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "x.png"], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    pixels, peak = map(int, out.stdout.split())
    assert 3 * pixels < peak < 10 * pixels  # 3 of the result, up to 4 of Pillow's picture, and some strips


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
    pair = encoded(Image.new("RGB", (64, 48), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")])
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
    path.write_bytes(small_giant(20_000, "1"))
    with pytest.raises(DataError, match="mask is 20000 x 20000 px but its image is 40 x 30 px"):
        read_mask(path, 30, 40)
    with pytest.raises(ValueError, match="400 megapixels, over the limit"):
        MaskZone(name="rim", kind="mask", path=str(path))


def test_every_picture_is_opened_in_one_place():
    opened = [p.relative_to(ROOT).as_posix() for p in (ROOT / "sads_jax").rglob("*.py") if "Image.open(" in p.read_text()]
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
    return "a: &a [ha, ha]\n" + "\n".join(f"{y}: &{y} [{', '.join(['*' + x] * wide)}]" for x, y in zip(names, names[1:]))


def test_references_do_not_multiply(tmp_path):
    (tmp_path / "params.yaml").write_text(laughs())
    assert len(laughs()) < 500
    with pytest.raises(ParamsError, match="values once its references are written out"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: 3")
    with pytest.raises(ParamsError, match="values once its references are written out"):
        load_params(tmp_path / "params.yaml", ["data.defects={" + laughs().replace("\n", ", ") + "}"])


@pytest.mark.parametrize("text, what", [
    ("a: &a [*a]", "refers to itself"), ("[" * 5000, "nested more than 50 levels"), ("a: [" + "1, " * 30_000 + "1]", "more than 20,000 values"),
    ("a: " + "9" * 6000, "not valid YAML"), ("a: " + "1:" * 500 + "1", "more than 64 bits"), ("a: 2024-13-45", "not valid YAML"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"), ("x" * 2**21, "over the limit")])
def test_yaml_that_grows_is_refused(text, what):
    with pytest.raises(ParamsError, match=what):
        read_yaml(text, "params.yaml")


def test_a_key_twice_is_an_error_with_both_lines(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\ndecision:\n  rules: [{name: a}]\nsplit: {train: .5,\n  train: .6}\ndecision: {}\n")
    with pytest.raises(ParamsError, match="'decision' is given twice, in line 2 and in line 6. Join the two, or remove one"):
        load_params(path)
    path.write_text("seed: 1\nsplit: {train: .5,\n  train: .6}\n")
    with pytest.raises(ParamsError, match="'train' is given twice, in line 2 and in line 3"):
        load_params(path)


def test_a_reference_is_a_copy():
    tree = read_yaml("a: &s {x: 1}\nb: *s\nc: {<<: *s, y: 2}", "here")
    assert tree == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}} and tree["a"] is not tree["b"]
