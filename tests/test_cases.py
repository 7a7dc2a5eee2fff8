"Data as tools, people and systems really leave it: what is read, what is mended and said, what is refused and why"

import copy
import json
import math
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import dark_cascade as dark
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sads_jax.core.errors import DataError, ImageError, ParamsError, SADSError
from sads_jax.core.params import load_params, override
from sads_jax.data.connectors import ConnectorFactory, ingest
from sads_jax.data.formats import mask_to_rle, read_mask, run_lengths
from sads_jax.data.images import read_image, turned
from sads_jax.data.records import class_map, read_coco
from sads_jax.data.survey import loss_lines

H = W = 32
RNG = np.random.default_rng(0)
BOX = [5, 7, 12, 8]  # x, y, w, h of the defect on every defective photograph
CORNERS = [5, 7, 17, 7, 17, 15, 5, 15]
AREA = 96
SQUARE = np.zeros((H, W), bool)
SQUARE[7:15, 5:17] = True


def photo(seed=0, h=H, w=W):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))


def encoded(im, fmt="PNG", **kw):
    out = BytesIO()
    im.save(out, fmt, **kw)
    return out.getvalue()


PHOTOS = [encoded(photo(i)) for i in range(6)]


def coco_tree():
    "Three defective and three good photographs"
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in range(6)],
        "categories": [{"id": 1, "name": "scratch"}],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": BOX,
                "segmentation": [CORNERS],
                "area": AREA,
                "iscrowd": 0,
            }
            for i in range(3)
        ],
    }


def write_coco_case(root, change=lambda tree: None):
    root.mkdir(exist_ok=True)
    for i, content in enumerate(PHOTOS):
        (root / f"{i}.png").write_bytes(content)
    tree = coco_tree()
    change(tree)
    (root / "annotations.json").write_text(json.dumps(tree))
    return root


def ingested(tmp_path, **spec):
    "The data set and what ingest.json says"
    data = ingest(ConnectorFactory(spec), tmp_path / "out")
    return data, json.loads((tmp_path / "out" / "ingest.json").read_text())


def first(**fields):
    return lambda t: t["annotations"][0].update(fields)


def every(**fields):
    return lambda t: [a.update(fields) for a in t["annotations"]]


def without(field):
    return lambda t: [a.pop(field) for a in t["annotations"]]


def alone(**fields):
    return lambda t: [a.update({"segmentation": [], "area": 0} | fields) for a in t["annotations"]]


def image0(**fields):
    return lambda t: t["images"][0].update(fields)


RLE = mask_to_rle(SQUARE)
RUNS = run_lengths(RLE["counts"]).tolist()

MENDED = {  # change of the file; what a note says; the first annotation's box and area
    "as it should be": (lambda t: None, None, BOX),
    "compressed run lengths": (every(segmentation=RLE), None, BOX),
    "plain run lengths": (every(segmentation={"size": [H, W], "counts": RUNS}), None, BOX),
    "run lengths as text and decimals": (
        every(segmentation={"size": [H, W], "counts": [str(RUNS[0]), *map(float, RUNS[1:])]}),
        None,
        BOX,
    ),
    "run lengths end early": (every(segmentation={"size": [H, W], "counts": RUNS[:-1]}), "end early", BOX),
    "run lengths end early, nothing else is told": (
        lambda t: [
            a.update(segmentation={"size": [H, W], "counts": RUNS[:-1]}) or a.pop("bbox") or a.pop("area")
            for a in t["annotations"]
        ],
        "end early",
        BOX,
    ),
    "a polygon without the outer list": (every(segmentation=CORNERS), None, BOX),
    "a polygon of pairs": (every(segmentation=[[5, 7], [17, 7], [17, 15], [5, 15]]), None, BOX),
    "polygons of pairs": (every(segmentation=[[[5, 7], [17, 7], [17, 15], [5, 15]]]), None, BOX),
    "points as mappings": (
        every(segmentation=[{"x": 5, "y": 7}, {"x": 17, "y": 7}, {"x": 17, "y": 15}, {"x": 5, "y": 15}]),
        None,
        BOX,
    ),
    "coordinates as text": (every(segmentation=[list(map(str, CORNERS))]), None, BOX),
    "one polygon is a point": (every(segmentation=[CORNERS, [9, 9]]), "less than three points", BOX),
    "no box": (without("bbox"), None, BOX),
    "box null": (every(bbox=None), None, BOX),
    "null in a box": (every(bbox=[5, 7, None, 8]), "taken from its outline", BOX),
    "NaN in a box": (every(bbox=[5, math.nan, 12, 8]), "taken from its outline", BOX),
    "a box without width": (every(bbox=[5, 7, 0, 8]), "taken from its outline", BOX),
    "a box as a mapping": (every(bbox={"x": 5, "y": 7, "width": 12, "height": 8}), None, BOX),
    "corners with an outline": (every(bbox=[5, 7, 17, 15]), "x1, y1, x2, y2", BOX),
    "corners with an area": (every(bbox=[5, 7, 17, 15], segmentation=[]), "x1, y1, x2, y2", BOX),
    "shares with an outline": (every(bbox=[v / W for v in BOX]), "shares of the image", BOX),
    "shares with an area": (every(bbox=[v / W for v in BOX], segmentation=None), "shares of the image", BOX),
    "centre with an outline": (every(bbox=[11, 11, 12, 8]), "centre", BOX),
    "area of another world": (every(area="large"), None, BOX),
    "area missing": (without("area"), None, BOX),
    "ids as text": (
        lambda t: [a.update(image_id=str(a["image_id"]), category_id="1") for a in t["annotations"]],
        None,
        BOX,
    ),
    "ids as decimals": (lambda t: [a.update(image_id=float(a["image_id"])) for a in t["annotations"]], None, BOX),
    "no size": (lambda t: [im.update(width=None, height=None) for im in t["images"]], "taken from its file", BOX),
    "size 0": (lambda t: [im.update(width=0, height=0) for im in t["images"]], "taken from its file", BOX),
    "size as text": (lambda t: [im.update(width="32", height="32") for im in t["images"]], None, BOX),
    "a root category without an example": (
        lambda t: t["categories"].append({"id": 0, "name": "defects"}),
        "without an example were left out: defects",
        BOX,
    ),
    "a class under two ids": (lambda t: t["categories"].append({"id": 2, "name": "scratch"}), "several ids", BOX),
    "a box a little out of the image": (alone(bbox=[26, 26, 6.5, 6.5]), None, [26, 26, 6, 6]),
    "a box that reaches out of the image": (alone(bbox=[-5, 4, 14, 9]), "cut at the edge", [0, 4, 9, 9]),
    "backslashes": (
        lambda t: [im.update(file_name=".\\" + im["file_name"]) for im in t["images"]],
        "another name",
        BOX,
    ),
    "a folder of another machine": (
        lambda t: [im.update(file_name="C:\\data\\" + im["file_name"]) for im in t["images"]],
        "another name",
        BOX,
    ),
    "upper case": (
        lambda t: [im.update(file_name=im["file_name"].upper()) for im in t["images"]],
        "another name",
        BOX,
    ),
    "percent signs": (
        lambda t: [im.update(file_name=im["file_name"].replace(".", "%2E")) for im in t["images"]],
        "another name",
        BOX,
    ),
}


@pytest.mark.parametrize("case", MENDED)
def test_what_is_clear_is_read(tmp_path, case):
    change, note, box = MENDED[case]
    data, told = ingested(tmp_path, kind="coco", root=write_coco_case(tmp_path / "src", change))
    assert len(data) == 6 and not told["skipped"] and data.categories == ("scratch",)
    assert [round(v, 6) for v in data.images[0].annotations[0].bbox] == box
    assert told["classes"] == {"scratch": {"kept": 3, "left_out": 0}}
    if box == BOX:
        assert (class_map(data.images[0], data.categories) > 0).sum() == AREA
    assert not told["notes"] if note is None else note in told["notes"][0], told["notes"]


LEFT_OUT = {  # change of the first annotation or image; what is said; the rest is kept
    "NaN in a polygon": (first(segmentation=[[5, 7, math.nan, 9, 9, 9]]), "coordinate 2 is nan"),
    "a coordinate of 2e8": (first(segmentation=[[5, 7, 2.1e8, 9, 9, 9]]), "coordinate 2 is 210000000.0, not between"),
    "infinity": (first(segmentation=[[5, 7, math.inf, 9, 9, 9]]), "coordinate 2 is inf"),
    "text in a polygon": (first(segmentation=[["5", "7", "x", "9", "9", "9"]]), "coordinate 2 is 'x'"),
    "true in a polygon": (first(segmentation=[[5, 7, True, 9, 9, 9]]), "coordinate 2 is True"),
    "seven coordinates": (first(segmentation=[[5, 7, 9, 9, 9, 9, 9]]), "no pairs"),
    "two points": (first(segmentation=[[5, 7, 9, 9]]), "at least three points"),
    "points and numbers": (first(segmentation=[[5, 7, [9, 9], 9, 9]]), "mixes points and numbers"),
    "a segmentation that is text": (first(segmentation="5,7,9"), "neither polygons nor run lengths"),
    "negative run lengths": (first(segmentation={"size": [H, W], "counts": [-1, 5, 1020]}), "counts[0] is -1"),
    "text in run lengths": (first(segmentation={"size": [H, W], "counts": [1, "x"]}), "counts[1] is 'x'"),
    "run lengths that go on": (first(segmentation={"size": [H, W], "counts": [1000, 50, 9]}), "add up to 1059 px"),
    "run lengths of 1e12": (
        first(segmentation={"size": [H, W], "counts": [10**12, 50]}),
        "counts[0] is 1000000000000",
    ),
    "packed run lengths cut off": (first(segmentation=RLE | {"counts": RLE["counts"][:-1] + "o"}), "cannot be read"),
    "run lengths without counts": (first(segmentation={"size": [H, W]}), "no run lengths"),
    "a mask of another size": (first(segmentation={"size": [9, 9], "counts": [81]}), "mask is 9 x 9 px"),
    "a box apart from its outline": (first(bbox=[25, 25, 5, 5]), "lies apart from its own outline"),
    "NaN in a box alone": (first(segmentation=[], bbox=[5, 7, math.nan, 8]), "bbox[2] is nan"),
    "a box of three numbers": (first(segmentation=[], bbox=[5, 7, 9]), "no list of four numbers"),
    "a box with negative width": (first(segmentation=[], area=0, bbox=[9, 9, -3, 4]), "no width or no height"),
    "a box in shares": (first(segmentation=[], area=0, bbox=[0.1, 0.1, 0.2, 0.2]), "in shares of the image"),
    "a box outside": (first(segmentation=[], area=0, bbox=[40, 40, 5, 5]), "outside of the image"),
    "a box mostly outside": (first(segmentation=[], area=0, bbox=[28, 28, 30, 30]), "for the most part outside"),
    "nothing drawn": (first(segmentation=[], bbox=[]), "neither a box nor a mask"),
    "called good, yet marked": (image0(defective=False), "called good"),
    "a width of -3": (image0(width=-3), "width is -3"),
    "a size beyond memory": (image0(width=10**6, height=10**6), "too many"),
    "a size of another photograph": (
        lambda t: t["images"][0].update(width=64) or t["annotations"][0].update(segmentation=[]),
        "the annotations are for 64 x 32 px",
    ),
    "a photograph that is not there": (image0(file_name="lost.png"), "no such file"),
    "a name that leads out": (image0(file_name="../src/0.png"), "leads out of the data set"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_not_clear_is_left_out_and_named(tmp_path, case):
    change, says = LEFT_OUT[case]
    data, told = ingested(tmp_path, kind="coco", root=write_coco_case(tmp_path / "src", change))
    assert [r.id for r in data.images] == [1, 2, 3, 4, 5] and says in told["skipped"][0]["error"], told["skipped"]
    assert told["classes"]["scratch"] == {"kept": 2, "left_out": 1} and told["causes"][0]["count"] == 1
    lines = loss_lines(told)
    assert lines[0] == "WARNING: left out 1 of 3 scratch" and says in lines[1]


REFUSED = {  # change of the file; what the one error says; nothing is written
    "annotations null": (lambda t: t.update(annotations=None), '"annotations" is no list'),
    "images a mapping": (lambda t: t.update(images={}), '"images" is no list'),
    "no annotations and nobody says good": (lambda t: t.pop("annotations"), '"annotations" is no list'),
    "all defects lost": (every(segmentation=[[5, 7, 9, 9]]), "all photographs of 'scratch' would be left out"),
    "most defects lost": (
        lambda t: [a.update(segmentation=[[1, 2]]) for a in t["annotations"][:2]],
        "2 of 3 defective photographs would be left out",
    ),
    "a rare class lost": (
        lambda t: t["categories"].append({"id": 2, "name": "dent"}) or first(category_id=2, segmentation="x")(t),
        "all photographs of 'dent' would be left out",
    ),
    "corners without an outline": (
        lambda t: [a.update(segmentation=[], area=0, bbox=[20, 20, 30, 31]) for a in t["annotations"]],
        "all could be x1, y1, x2, y2",
    ),
    "an id for two classes": (lambda t: t["categories"].append({"id": 1, "name": "dent"}), "id 1 is used twice"),
    "an id for two images": (image0(id=1), "image id 1 is used twice"),
    "an id that is a list": (image0(id=[1]), "neither a number nor a text"),
    "an id of infinity": (image0(id=math.inf), "neither a number nor a text"),
    "an unknown class": (first(category_id=9), "label 9 is not in the map"),
    "an unknown image": (first(image_id=99), "image_id 99 is no image"),
    "a nameless class": (lambda t: t["categories"][0].update(name=" "), "the name is empty"),
    "one file in two entries": (lambda t: [im.update(file_name="0.png") for im in t["images"][:5]], "is used twice"),
    "file_name null": (image0(file_name=None), "file_name is None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_another_data_set_is_refused(tmp_path, case):
    change, says = REFUSED[case]
    with pytest.raises(DataError) as e:
        ingested(tmp_path, kind="coco", root=write_coco_case(tmp_path / "src", change))
    assert says in str(e.value) and e.value.where and not (tmp_path / "out").exists()


def test_a_json_key_given_twice(tmp_path):
    root = write_coco_case(tmp_path / "src")
    text = (root / "annotations.json").read_text()
    (root / "annotations.json").write_text('{"annotations": [], ' + text[1:])
    with pytest.raises(DataError, match="the key 'annotations' is given twice"):
        read_coco(root)


def test_names_that_could_be_two_files(tmp_path):
    root = write_coco_case(tmp_path / "src")
    for folder in "ab":
        (root / folder).mkdir()
        (root / folder / "0.png").write_bytes(PHOTOS[0])
    (root / "0.png").unlink()
    _, told = ingested(tmp_path, kind="coco", root=root)
    assert "could be any of a/0.png, b/0.png" in told["skipped"][0]["error"]


# ---- masks as pictures

SPOT = SQUARE.astype(np.uint8)


def palette_mask():
    im = Image.fromarray(SPOT).convert("P")
    im.putpalette([0, 0, 0, 128, 0, 0])
    return im


def void_ring(values=SPOT):
    ring = np.zeros((H, W), np.uint8)
    ring[5:17, 3:19] = 255
    return np.where(SQUARE, values, ring).astype(np.uint8)


def voc_mask():
    im = Image.fromarray(void_ring()).convert("P")
    colours = np.zeros((256, 3), np.uint8)
    colours[1], colours[255] = (128, 0, 0), (224, 224, 192)
    im.putpalette(colours.ravel().tolist())
    return im


def colour(*rgb):
    return Image.fromarray(np.where(SQUARE[..., None], np.uint8(rgb), np.uint8(0)))


def on_nothing(inside, outside):
    return Image.fromarray(np.dstack([np.where(SQUARE[..., None], np.uint8(inside), np.uint8(outside)), SPOT * 255]))


def blurred():
    x = np.zeros((H, W), np.uint8)
    x[6:16, 4:18] = 90  # an antialiased edge of one pixel
    return np.where(SQUARE, np.uint8(255), x)


MASKS = {
    "white": SPOT * 255,
    "ones": SPOT,
    "class 3": SPOT * 3,
    "255 in 16 bits": SPOT.astype(np.uint16) * 255,
    "4095 in 16 bits": SPOT.astype(np.uint16) * 4095,
    "65535 in 16 bits": SPOT.astype(np.uint16) * 65535,
    "one bit": SQUARE,
    "palette": palette_mask(),
    "VOC palette with void": voc_mask(),
    "numbers with void": void_ring(),
    "red": colour(255, 0, 0),
    "dark blue": colour(0, 0, 60),
    "red on nothing": on_nothing((200, 0, 0), (200, 0, 0)),
    "white on black nothing": on_nothing((255,) * 3, (0, 0, 0)),
    "opaque black on nothing": on_nothing((0, 0, 0), (0, 0, 0)),
    "grey with an edge": blurred(),
    "two classes": np.where(np.arange(W) < 11, SPOT * 85, SPOT * 170).astype(np.uint8),
    "three classes, one white": np.where(np.arange(W) < 11, SPOT * 85, SPOT * 255).astype(np.uint8),
}


@pytest.mark.parametrize("case", MASKS)
def test_what_is_not_background_is_the_defect(tmp_path, case):
    im = MASKS[case]
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png", H, W) == SQUARE).all()


def test_a_mask_saved_as_jpeg(tmp_path):
    Image.fromarray(SPOT * 255).save(tmp_path / "m.jpg", quality=60)
    assert (read_mask(tmp_path / "m.jpg", H, W) == SQUARE).all()


@pytest.mark.parametrize(
    "pixels, says",
    [
        (np.where(SQUARE[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255])), "2 colours without black"),
        (RNG.integers(0, 100, (H, W), np.uint8), "grey levels from 1 to 99, none above 127.5"),
    ],
)
def test_a_mask_that_says_nothing_clear(tmp_path, pixels, says):
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=says):
        read_mask(tmp_path / "m.png", H, W)


# ---- folders


def mvtec(root, mask="ground_truth/scratch/{:03d}_mask.png", good="train/good/{:03d}.png"):
    for i in range(3):
        for name, content in (
            (good.format(i), PHOTOS[i]),
            (f"test/scratch/{i:03d}.png", PHOTOS[3 + i]),
            (mask.format(i), encoded(Image.fromarray(SPOT * 255), "JPEG" if mask.endswith("jpg") else "PNG")),
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "mask",
    [
        "ground_truth/scratch/{:03d}_mask.PNG",
        "ground_truth/scratch/{:03d}_GT.png",
        "ground_truth/scratch/{:03d}_mask.jpg",
        "ground_truth/scratch/{:03d}/000.png",
        "Ground_Truth/scratch/{:03d}.png",
        "masks/scratch/{:03d}_label.bmp",
        "test/scratch/{:03d}_mask.png",
        "test/scratch/{:03d}_gt.PNG",
    ],
)
def test_masks_are_found_under_their_usual_names(tmp_path, mask):
    data, told = ingested(tmp_path, kind="folder", root=mvtec(tmp_path / "src", mask))
    assert [r.annotations[0].area for r in data.images if r.defective] == [AREA] * 3
    assert len(data) == 6 and told["unused"] == [] and told["kinds"]["good"] == {"kept": 3, "left_out": 0}


def test_several_masks_of_one_photograph_count_together(tmp_path):
    root = mvtec(tmp_path / "src", "ground_truth/scratch/{:03d}/000.png")
    other = np.zeros((H, W), np.uint8)
    other[20:30, 20:30] = 200
    Image.fromarray(other).save(root / "ground_truth/scratch/001/001.png")
    data, _ = ingested(tmp_path, kind="folder", root=root)
    assert [len(r.annotations) for r in data.images if r.defective] == [1, 2, 1]


def test_every_file_is_accounted_for(tmp_path):
    root = mvtec(tmp_path / "src", good="train/good/{:03d}.jfif")
    for name in (
        ".DS_Store",
        "__MACOSX/test/scratch/._000.png",
        "test/scratch/Thumbs.db",
        "test/scratch/.thumbs/a.png",
        "readme.txt",
        "loose.png",
        "test/scratch/raw.heic",
        "ground_truth/scratch/777_mask.png",
        "extra/a.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PHOTOS[0])
    data, told = ingested(tmp_path, kind="folder", root=root)
    assert len(data) == 6 and data.categories == ("scratch",)
    hidden, cannot, photo_ = (
        "hidden, or left by a system",
        "a picture of a kind that cannot be read",
        "in no class folder, or no mask of a photograph",
    )
    assert {u["file"]: u["reason"] for u in told["unused"]} == {
        ".DS_Store": hidden,
        "__MACOSX/": hidden,
        "test/scratch/.thumbs/": hidden,
        "test/scratch/Thumbs.db": hidden,
        "readme.txt": "not a photograph",
        "loose.png": photo_,
        "extra/a.png": photo_,
        "ground_truth/scratch/777_mask.png": photo_,
        "test/scratch/raw.heic": cannot,
    }
    assert told["notes"][-1].startswith("9 files were not used: 4 hidden, or left by a system")


@pytest.mark.parametrize(
    "folders, says",
    [
        (("bottle/train/good", "cable/test/good"), "holds 2 data sets"),
        (("bottle/train/good",), "holds 1 data set in a folder"),
        (("photos/good", "photos/rust"), "holds 1 data set"),
    ],
)
def test_the_folder_above_is_no_data_set(tmp_path, folders, says):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").write_bytes(PHOTOS[0])
    with pytest.raises(DataError, match=says) as e:
        ConnectorFactory({"kind": "folder", "root": tmp_path})
    assert f"data.root={tmp_path}/{folders[0].split('/')[0]}" in e.value.remedy


# ---- photographs that EXIF turns

TALL = np.zeros((24, 40), bool)  # as stored
TALL[3:9, 10:30] = True


def turned_photo(orientation, seed):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(seed, 24, 40), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("drawn", ["polygon", "run lengths", "box"])
def test_labels_of_the_stored_frame_turn_with_the_photograph(tmp_path, orientation, drawn):
    segmentation = {"polygon": [[10, 3, 30, 3, 30, 9, 10, 9]], "run lengths": mask_to_rle(TALL), "box": []}[drawn]
    tree = {
        "categories": [{"id": 1, "name": "scratch"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 24} for i in range(2)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [10, 3, 20, 6], "segmentation": segmentation}],
    }
    (tmp_path / "src").mkdir()
    for i in range(2):
        (tmp_path / "src" / f"{i}.jpg").write_bytes(turned_photo(orientation, i))
    (tmp_path / "src/annotations.json").write_text(json.dumps(tree))
    data, told = ingested(tmp_path, kind="coco", root=tmp_path / "src")
    assert (
        (class_map(data.images[0], data.categories) > 0).shape
        == (40, 24)
        == data.photograph(data.images[0]).shape[:2]
    )
    assert ((class_map(data.images[0], data.categories) > 0) == turned(TALL, orientation)).all()
    assert "turned with a photograph" in told["notes"][0]


def test_masks_of_the_stored_frame_turn_with_the_photograph(tmp_path):
    for i in range(2):
        for name, content in (
            (f"good/{i}.jpg", turned_photo(1, i)),
            (f"rust/{i}.jpg", turned_photo(6, 5 + i)),
            (f"rust/{i}_mask.png", encoded(Image.fromarray(TALL))),
        ):
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes(content)
    data, _ = ingested(tmp_path, kind="folder", root=tmp_path / "src")
    bad = [r for r in data.images if r.defective]
    assert len(bad) == 2 and all(((class_map(r, data.categories) > 0) == turned(TALL, 6)).all() for r in bad)


# ---- Pascal VOC

PAGE = (
    "<annotation>{}<object><name>scratch</name><bndbox><xmin>{}</xmin><ymin>8</ymin><xmax>{}</xmax><ymax>15</ymax>"
    "</bndbox></object></annotation>"
)


def voc(root, size="", x1="6", x2="17"):
    for folder in ("JPEGImages", "Annotations", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        (root / f"JPEGImages/{i}.png").write_bytes(PHOTOS[i])
        (root / f"Annotations/{i}.xml").write_text(PAGE.format(size, x1, x2) if i < 2 else "<annotation/>")
        if i < 2:
            voc_mask().save(root / f"SegmentationObject/{i}.PNG")
    return root


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>32</width><height>32</height><depth>3</depth></size>",
    ],
)
def test_the_photograph_knows_its_size_and_void_is_no_defect(tmp_path, size):
    data, _ = ingested(tmp_path, kind="voc", root=voc(tmp_path / "src", size), masks="SegmentationObject")
    assert len(data) == 3 and [a.area for r in data.images for a in r.annotations] == [AREA] * 2


@pytest.mark.parametrize(
    "x1, x2, says",
    [
        ("nan", "17", "bndbox/xmin is"),
        ("6", "inf", "bndbox/xmax is"),
        ("6", "", "'bndbox/xmax' is missing or no number"),
        ("17", "6", "ends before it begins"),
        ("6", "1e30", "not between"),
    ],
)
def test_boxes_of_voc_are_checked(tmp_path, x1, x2, says):
    root = voc(tmp_path / "src")
    for i in range(3, 6):
        (root / f"JPEGImages/{i}.png").write_bytes(PHOTOS[i])
    for i in range(3, 6):
        (root / f"Annotations/{i}.xml").write_text(PAGE.format("", "6", "17"))
    (root / "Annotations/0.xml").write_text(PAGE.format("", x1, x2))
    data, told = ingested(tmp_path, kind="voc", root=root)
    assert len(data) == 5 and says in told["skipped"][0]["error"]


def test_two_photographs_of_one_xml(tmp_path):
    root = voc(tmp_path / "src")
    for i in range(3, 6):
        (root / f"JPEGImages/{i}.png").write_bytes(PHOTOS[i])
        (root / f"Annotations/{i}.xml").write_text(PAGE.format("", "6", "17"))
    (root / "JPEGImages/0.jpg").write_bytes(encoded(photo(9), "JPEG"))
    data, told = ingested(tmp_path, kind="voc", root=root)
    assert len(data) == 5 and all("is the XML of 0.jpg and of 0.png" in s["error"] for s in told["skipped"])


# ---- grey levels


def sixteen(high, seed=0):
    return (np.random.default_rng(seed).random((H, W)) * high).round().astype(np.uint16)


@pytest.mark.parametrize(
    "bits, high", [(None, 4000), (12, 4000), (None, 1000), (None, 16000), (None, 60000), (12, 900)]
)
def test_sixteen_bits_are_read_on_one_scale(tmp_path, bits, high):
    "Estimated or stated, white is kept with the data set, and grey levels are shares of it"
    white = {4000: 4095, 1000: 1023, 16000: 16383, 60000: 65535, 900: 4095}[high]
    for i in range(4):
        path = tmp_path / "src" / ("good" if i % 2 else "rust") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sixteen(high if i == 0 else high * 0.7, i)).save(path)
    data, told = ingested(tmp_path, kind="folder", root=tmp_path / "src", bits=bits)
    assert len(data) == 4 and told["white"] == data.white == read_coco(tmp_path / "out").white == white
    stored = np.asarray(Image.open(data.path(data.images[0])), np.float64)
    assert np.abs(data.photograph(data.images[0])[..., 0] - stored * 255 / white).max() <= 0.5
    assert ingest(ConnectorFactory({"kind": "coco", "root": tmp_path / "out"}), tmp_path / "again").white == white


def test_a_photograph_on_another_scale_is_left_out(tmp_path):
    for i in range(8):
        path = tmp_path / "src" / ("good" if i % 2 else "rust") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sixteen(3200 if i == 7 else 60000, i)).save(path)
    data, told = ingested(tmp_path, kind="folder", root=tmp_path / "src")
    assert len(data) == 7 and "16-bit pixels up to" in told["skipped"][0]["error"]
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == 7


def test_a_model_takes_photographs_of_its_own_scale_only(tmp_path):
    "Learnt from 12 bits in 16, a model judges such a photograph as the same one in 8 bits, and refuses full 16 bits"
    from sads_jax.registry.bundle import load_pipeline, read_bundle

    eight = (np.random.default_rng(1).random((64, 64)) * 255).astype(np.uint8)
    dark.bundle(tmp_path / "b", white=4095)
    pipeline = load_pipeline(tmp_path / "b")
    assert read_bundle(tmp_path / "b").preprocess.white == 4095
    twelve = np.round(eight * (4095 / 255)).astype(np.uint16)
    same = [pipeline.process_request(encoded(Image.fromarray(x))) for x in (eight, twelve)]
    assert same[0].image_score == same[1].image_score and same[0].defects == same[1].defects
    with pytest.raises(ImageError, match="where white is 4095"):
        pipeline.process_request(encoded(Image.fromarray(twelve * 16)))


def test_twelve_bits_are_refused_where_nobody_stated_them():
    twelve, full = sixteen(3264), sixteen(3264) * 16
    with pytest.raises(ImageError, match="nobody stated what white is"):
        read_image(encoded(Image.fromarray(twelve)))
    assert np.abs(read_image(encoded(Image.fromarray(full)))[..., 0] - full / 257).max() <= 0.5


def deep_png(x):
    "A PNG of uint16 [H, W, 3], which Pillow reads but does not write"
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colour_of_sixteen_bits_is_read_in_full_or_refused():
    x = np.random.default_rng(0).integers(0, 256, (H, W, 3)).astype(np.uint16)
    assert (read_image(deep_png(x * 257)) == x).all()
    with pytest.raises(ImageError, match="16-bit colour up to"):
        read_image(deep_png(x * 16))  # 12 bits in 16
    with pytest.raises(ImageError, match="16-bit colour"):
        read_image(deep_png(x * 257), white=4095)


# ---- parameters


def test_a_path_is_what_was_typed(tmp_path):
    for typed in ("Lot #3", "2024", "a: b", "[x]", "{lot}", "007", "no", "*.png", "1e3"):
        assert override({}, [f"data.root={typed}"])["data"]["root"] == typed
    assert override({}, ["data.root=~/x"])["data"]["root"] == os.path.expanduser("~/x")
    (tmp_path / "p.yaml").write_text("data: {kind: folder, root: ~/x}\n")
    assert load_params(tmp_path / "p.yaml").data.root == Path("~/x").expanduser()


def test_an_error_says_that_it_came_from_the_command_line(tmp_path):
    (tmp_path / "p.yaml").write_text("seed: 1\ndata:\n  kind: synthetic\n  n_parts: 4\n")
    with pytest.raises(ParamsError, match=r"data.n_parts \(given by -S\)"):
        load_params(tmp_path / "p.yaml", ["data.n_parts=-1"])
    with pytest.raises(ParamsError, match="is given twice, in line 1 and in line 3"):
        (tmp_path / "q.yaml").write_text("decision: {}\nseed: 1\ndecision: {}\n")
        load_params(tmp_path / "q.yaml")


# ---- whatever else a file may hold

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [[], {}, [[]], [None], "", "1", 10**30, -1, 0, 1e300, [[[1, 2]]], {"x": 1}, "\0", "../x", [math.nan] * 6]
    ),
    st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=2)), max_size=9),
)
PATHS = st.sampled_from(
    [
        ("images",),
        ("categories",),
        ("annotations",),
        ("info",),
        ("images", 0),
        ("annotations", 1),
        ("categories", 0),
        *(("images", 0, k) for k in ("id", "file_name", "width", "height", "classes", "defective", "part_id", "lot")),
        *(
            ("annotations", i, k)
            for i in range(2)
            for k in ("image_id", "category_id", "bbox", "segmentation", "area")
        ),
        *(("annotations", 0, "bbox", i) for i in range(4)),
        *(("annotations", 0, "segmentation", 0, i) for i in range(4)),
        ("annotations", 0, "segmentation", 0),
        ("annotations", 2, "segmentation", "counts"),
        ("annotations", 2, "segmentation", "size"),
        ("annotations", 2, "segmentation", "counts", 1),
        ("categories", 0, "name"),
    ]
)


def put(tree, path, value):
    for step in path[:-1]:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return
    try:
        tree[path[-1]] = copy.deepcopy(value)
    except (IndexError, TypeError):
        return


@settings(
    deadline=None,
    max_examples=int(os.environ.get("SADS_FUZZ", 200)),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(PATHS, JUNK), min_size=1, max_size=4), st.booleans())
def test_only_our_errors_come_out_of_the_coco_reader(tmp_path, changes, packed):
    def change(tree):
        tree["annotations"][2]["segmentation"] = dict(RLE) if packed else {"size": [H, W], "counts": list(RUNS)}
        for path, value in changes:
            put(tree, path, value)

    try:
        data, told = ingested(tmp_path, kind="coco", root=write_coco_case(tmp_path / "src", change))
    except SADSError as e:
        assert e.remedy or e.where
        return
    assert len(data) + len(told["skipped"]) == sum(c["kept"] + c["left_out"] for c in told["kinds"].values())
    for r in data.images:
        assert all(math.isfinite(v) for a in r.annotations for v in (*a.bbox, a.area))
        assert all(
            0 <= a.box[0] < a.box[2] <= r.width and 0 <= a.box[1] < a.box[3] <= r.height for a in r.annotations
        )


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=[chr(c) for c in range(40, 120)], max_size=20))
def test_packed_run_lengths_agree_with_pycocotools_or_are_refused(text):
    from pycocotools import mask as coco

    try:
        runs = run_lengths(text)
    except DataError:
        return
    if runs.sum() != H * W:
        return
    want = coco.decode({"size": [H, W], "counts": text.encode()}).astype(bool)
    got = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(W, H).T
    assert (got == want).all()
