"""torchvision's NMS and OpenCV's components, to be timed in turn with ours.

    python operations.py

Jobs: `nms N B` (B sets of N boxes of 0..320 px, IoU 0.5) and `components S B` (B masks of S x S px).
"""
import cv2
import numpy as np
import torch
import torchvision
from answer import answer
from inputs import NMS, REGIONS, boxes_and_scores, masks


def main():
    torch.set_num_threads(2)
    jobs = {}
    for n, b in NMS:
        boxes, scores = map(torch.tensor, boxes_and_scores(n, b))
        jobs[f"nms {n} {b}"] = lambda boxes=boxes, scores=scores: [
            torchvision.ops.nms(x, s, 0.5).numpy() for x, s in zip(boxes, scores)
        ]
    for side, b in REGIONS:
        drawn = masks(side, b).astype(np.uint8)
        jobs[f"components {side} {b}"] = lambda m=drawn: [cv2.connectedComponents(x, connectivity=8) for x in m]
    for f in jobs.values(): f()
    answer(jobs, kept=[len(x) for x in jobs["nms 300 8"]()], regions=[n - 1 for n, _ in jobs["components 256 32"]()])


if __name__ == "__main__":
    main()
