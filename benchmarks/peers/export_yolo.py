"""COCO instances and a split -> YOLO's folders with polygons.

    python export_yolo.py DATASET SPLIT.json OUT

Runs beside the peers. What our own training leaves out (images known to be defective without a place) is left out
of train and val here too. Their training asks for a validation split: where ours learnt from its own (`split.refit`),
theirs does too and gets the calibration split to choose its best epoch by.
"""
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle


def polygon(mark, height, width):
    "The outline of the largest piece, or the box where nothing better was drawn"
    x, y, w, h = mark["bbox"]
    seg = mark["segmentation"]
    if seg:
        coded = seg if isinstance(seg, dict) else rle.merge(rle.frPyObjects(seg, height, width))
        if isinstance(coded["counts"], list): coded = rle.frPyObjects(coded, height, width)
        lines, _ = cv2.findContours(np.ascontiguousarray(rle.decode(coded)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        line = max(lines, key=cv2.contourArea, default=np.zeros((0, 1, 2)))[:, 0] + .5
        if len(line) > 2 and (np.ptp(line, 0) > 0).all(): return line / (width, height)
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]) / (width, height)


def main():
    data, split, out = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())["splits"], Path(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    tree = json.loads((data / "annotations.json").read_text())
    images, marks = {im["id"]: im for im in tree["images"]}, {im["id"]: [] for im in tree["images"]}
    for a in tree["annotations"]: marks[a["image_id"]].append(a)
    index = {c["id"]: i for i, c in enumerate(tree["categories"])}
    for side in ("train", "val", "test"):
        for folder in ("images", "labels"): (out / folder / side).mkdir(parents=True)
        for i in split["calibration" if side == "val" and not split["val"] else side]:
            im = images[i]
            if side != "test" and (im["defective"] is None or im["defective"] and not marks[i]): continue
            shutil.copy(data / im["file_name"], out / "images" / side / f"{i}{Path(im['file_name']).suffix}")
            rows = [
                f"{index[a['category_id']]} "
                + " ".join(f"{v:.6f}" for v in polygon(a, im["height"], im["width"]).clip(0, 1).ravel())
                for a in marks[i]
            ]
            (out / "labels" / side / f"{i}.txt").write_text("\n".join(rows) + "\n" if rows else "")
    names = {i: c["name"] for i, c in enumerate(tree["categories"])}
    (out / "data.yaml").write_text(
        json.dumps(
            {"path": str(out.absolute()), "train": "images/train", "val": "images/val", "test": "images/test",
                "names": names}
        )
    )


if __name__ == "__main__":
    main()
