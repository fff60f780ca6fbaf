"""Binary masks as COCO polygons, holes included."""

import cv2
import numpy as np

# Masks are traced at this many times their resolution, so that outlines lie near pixel edges.
UPSAMPLE = 2
# Largest distance of the simplified outline from the traced one, px of the mask.
TOLERANCE = 0.5
# Parts whose outline encloses less than this are left out, px of the mask.
MIN_PART_AREA = 2.0


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace the outlines of an (H, W) bool mask with at least one pixel set.

    COCO polygons have no holes: a hole is joined to its outline by a slit of no width, which
    pycocotools, Detectron2 and OpenCV fill as intended.

    Returns:
        One polygon for each part, [x0, y0, x1, y1, ...] in px with (0, 0) the outer corner of the
        first pixel; each has at least three corners. Rasterised, they cover the mask but for
        single pixels of its edge and parts below ``MIN_PART_AREA``.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        raise ValueError("an empty mask has no outline; got no pixel set, expected at least one")
    top, left = int(rows[0]), int(columns[0])
    window = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    window = window.repeat(UPSAMPLE, axis=0).repeat(UPSAMPLE, axis=1)
    contours, hierarchy = cv2.findContours(window, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes: dict[int, list[np.ndarray]] = {}
    outlines: dict[int, np.ndarray] = {}
    for number, contour in enumerate(contours):
        outline = cv2.approxPolyDP(contour, TOLERANCE * UPSAMPLE, closed=True)[:, 0]
        if len(outline) < 3 or cv2.contourArea(outline) < MIN_PART_AREA * UPSAMPLE**2:
            continue
        parent = int(hierarchy[0, number, 3])
        if parent < 0:
            outlines[number] = outline
        else:
            holes.setdefault(parent, []).append(outline)
    if not outlines:
        height, width = window.shape
        outlines[0] = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
        holes = {}
    polygons = []
    for number, outline in outlines.items():
        for hole in holes.get(number, []):
            outline = _join(outline, hole)
        corners = (outline + 0.5) / UPSAMPLE + [left, top]
        polygons.append(np.round(corners, 1).ravel().tolist())
    return polygons


def _join(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Visit the hole from the outline's nearest corner and go back the same way."""
    distance = np.abs(outline[:, None] - hole[None]).sum(2)
    here, there = np.unravel_index(int(distance.argmin()), distance.shape)
    around = np.roll(hole, -there, axis=0)
    detour = np.concatenate([around, around[:1], outline[here : here + 1]])
    return np.concatenate([outline[: here + 1], detour, outline[here + 1 :]])
