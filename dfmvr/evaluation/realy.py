"""A protocol like REALY's (Chai et al., 2022): the errors of nose, mouth, forehead and cheek, each by itself.

The prediction is aligned to the scan on the seven landmarks, with scale. Then, for each region of the scan:

1. the prediction moves rigidly onto the region: closest points, and the landmarks around it, which together
   weigh as much as the points do (a quarter as much for the cheek);
2. the region is warped onto the prediction, smoothly and holding on to the landmarks within it: this tells
   which predicted point stands for which scanned one, where the closest point would flatter the prediction;
3. an error is the distance (mm) from a point of the scan, as scanned, to the predicted point that is closest
   to where the warp took it.

A region's error is the mean over its points; `all` is the mean of the four. What differs from REALY's own
code (bICP): seven landmarks stand for its 85, and none holds the forehead's or the cheek's warp; the warp has
an energy of its own (`_warp`); errors are taken at up to POINTS points spread evenly over the region's
surface, so that a scanner's density does not count; and a scan that has no labels gets its regions from the
landmarks (`landmark_regions`). Numbers rank methods as REALY's do, but are not those of its table.

Axis letters: M points of a region, N scan vertices, K landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix, diags, identity
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from dfmvr.evaluation.distance import Floats, Ints, Surface
from dfmvr.evaluation.mesh_files import SCAN_REGIONS, MarkedMesh
from dfmvr.evaluation.protocol import crop_ball
from dfmvr.evaluation.published import NOW_CROP, surface_shares
from dfmvr.evaluation.registration import Transform, align_points, curve_order, even_subset

POINTS = 2000
"""Points of each region that are registered and measured."""
FEWEST_POINTS = 20
"""A region with less cannot be registered."""

RIGID_STEPS, RIGID_TOLERANCE_MM = 100, 1e-3
"""Most steps of the rigid registration, and the motion that ends it."""
WARP_LENGTHS_MM, WARP_STEPS = (20.0, 10.0, 5.0), 5
"""The warp follows shapes that are wider than these, one after the other, with so many steps each."""
NEIGHBOURS = 6
"""Neighbours of a point in the graph that the warp is smooth on."""
LANDMARK_HOLD = 10.0
"""A landmark's pull on the warp, in terms of what holds a point otherwise."""

_RIGID_LANDMARKS = {"nose": (1, 2, 4), "mouth": (4, 5, 6), "forehead": (0, 1, 2, 3), "cheek": (0, 3, 5, 6)}
_RIGID_SHARES = {"nose": 1.0, "mouth": 1.0, "forehead": 1.0, "cheek": 0.25}
_WARP_LANDMARKS = {"nose": (1, 2, 4), "mouth": (4, 5, 6), "forehead": (), "cheek": ()}


def measure_realy(scan: MarkedMesh, prediction: MarkedMesh) -> dict[str, float]:
    """Return the mean error (mm) of each of SCAN_REGIONS, and their mean under `all`.

    Args:
        scan: the truth; its labels are used if it has some. A cloud of points will do.
        prediction: needs triangles.

    Raises:
        ValueError: too little of the scan lies in a region.
    """
    errors = {region: float(found.mean()) for region, found in regional_errors(scan, prediction).items()}
    return errors | {"all": float(np.mean(list(errors.values())))}


def summarise_realy(faces: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean, median and standard deviation (mm) over faces, for each region and `all`.

    Args:
        faces: what measure_realy returned for each face; at least one.
    """
    if not faces:
        raise ValueError("faces: expected the errors of at least one face, got none")
    summary = {}
    for region in (*SCAN_REGIONS, "all"):
        errors = np.array([face[region] for face in faces])
        summary[region] = {
            "mean_mm": float(errors.mean()),
            "median_mm": float(np.median(errors)),
            "std_mm": float(errors.std()),
        }
    return summary


def regional_errors(scan: MarkedMesh, prediction: MarkedMesh) -> dict[str, Floats]:
    """Return the errors [M] (mm) at the points of each region; see measure_realy."""
    surface = Surface(prediction.vertices, prediction.triangles)
    start = align_points(prediction.landmarks_7, scan.landmarks_7, with_scale=True)
    labels = landmark_regions(scan) if scan.regions is None else scan.regions
    shares = surface_shares(scan)
    errors = {}
    for label, region in enumerate(SCAN_REGIONS):
        points = _spread(region, scan.vertices[labels == label], shares[labels == label])
        around, within = list(_RIGID_LANDMARKS[region]), list(_WARP_LANDMARKS[region])
        landmarks = prediction.landmarks_7[around], scan.landmarks_7[around]
        moved = _move_onto(surface, points, start, landmarks, _RIGID_SHARES[region])
        landmarks = moved.apply(prediction.landmarks_7[within]), scan.landmarks_7[within]
        warped = _warp(surface, moved, points, landmarks)
        errors[region] = np.linalg.norm(_closest(surface, moved, warped) - points, axis=1)
    return errors


def landmark_regions(scan: MarkedMesh) -> Ints:
    """Return the region [N] of each vertex, an index into SCAN_REGIONS or -1, as the landmarks tell it.

    Seen from the front, within NoW's crop and 3/4 of the outer eye corners' distance from the midline:

    * nose: from the line of the eyes to a tenth below its bottom; its half width grows from 0.4 to 0.7 of the
      inner eye corners' distance;
    * mouth: an ellipse around it, 1.4 times as wide, which reaches up to the nose's bottom;
    * forehead: a quarter of the outer eye corners' distance above the line of the eyes, and higher;
    * cheek: the rest between 0.15 of that distance below the line of the eyes and the mouth's lower end.

    What lies behind counts too: a mesh that has an inside of the mouth is better given labels.
    """
    centre, radius = crop_ball(scan.landmarks_7, NOW_CROP)
    origin, axes = _front_frame(scan.landmarks_7)
    x, y = ((scan.vertices - origin) @ axes.T).T
    marks = (scan.landmarks_7 - origin) @ axes.T
    outer, inner, mouth_width = np.linalg.norm(marks[[0, 1, 5]] - marks[[3, 2, 6]], axis=1)
    mouth_x, mouth_y = (marks[5] + marks[6]) / 2
    nose_y = marks[4, 1]
    reach = nose_y - mouth_y

    down = y / nose_y
    nose = (down > 0) & (down < 1.1) & (np.abs(x) < inner * (0.4 + 0.3 * down))
    mouth = ((x - mouth_x) / (0.7 * mouth_width)) ** 2 + ((y - mouth_y) / reach) ** 2 < 1
    face = (np.linalg.norm(scan.vertices - centre, axis=1) < radius) & (np.abs(x) < 0.75 * outer)
    cheek = (y < -0.15 * outer) & (y > mouth_y - reach)
    regions = np.full(len(x), -1, dtype=np.int64)
    forehead = y > 0.25 * outer
    for region, members in (("cheek", cheek), ("mouth", mouth), ("nose", nose), ("forehead", forehead)):
        regions[members & face] = SCAN_REGIONS.index(region)
    return regions


def _front_frame(landmarks_7: Floats) -> tuple[Floats, Floats]:
    """Return the point between the eyes [3], and the unit vectors to the subject's left and up [2, 3]."""
    right, left = landmarks_7[:2].mean(axis=0), landmarks_7[2:4].mean(axis=0)
    origin = (right + left) / 2
    across = (left - right) / np.linalg.norm(left - right)
    up = origin - landmarks_7[5:].mean(axis=0)
    up = up - (up @ across) * across
    return origin, np.stack([across, up / np.linalg.norm(up)])


def _spread(region: str, vertices: Floats, shares: Floats) -> Floats:
    """Return at most POINTS of the vertices, spread evenly over their surface."""
    if np.count_nonzero(shares) < FEWEST_POINTS:
        raise ValueError(
            f"scan: expected at least {FEWEST_POINTS} vertices with surface in the region {region!r}, "
            f"got {np.count_nonzero(shares)}"
        )
    order = curve_order(vertices)
    return vertices[order][even_subset(shares[order], POINTS)]


def _closest(surface: Surface, transform: Transform, points: Floats) -> Floats:
    """Return the points [M, 3] of the moved surface that are closest to points [M, 3]."""
    return transform.apply(surface.closest(transform.invert(points)).points)


def _move_onto(
    surface: Surface, points: Floats, start: Transform, landmarks: tuple[Floats, Floats], share: float
) -> Transform:
    """Move a surface rigidly onto points [M, 3], from `start`, whose scale stays.

    Args:
        surface: the prediction.
        points: of the scan's region.
        start: prediction -> scan.
        landmarks: the prediction's [K, 3], in its frame, and the scan's.
        share: what all landmarks together weigh, in terms of all points.
    """
    ours, theirs = landmarks
    targets = np.concatenate([points, theirs])
    weights = np.concatenate(
        [np.full(len(points), 1 / len(points)), np.full(len(theirs), share / len(theirs))]
    )
    transform = start
    for _ in range(RIGID_STEPS):
        sources = np.concatenate([_closest(surface, transform, points), transform.apply(ours)])
        step = align_points(sources, targets, with_scale=False, weights=weights)
        transform = step.after(transform)
        if np.linalg.norm(step.apply(sources) - sources, axis=1).max() < RIGID_TOLERANCE_MM:
            break
    return transform


def _warp(surface: Surface, transform: Transform, points: Floats, landmarks: tuple[Floats, Floats]) -> Floats:
    """Return where points [M, 3] go when they are bent smoothly onto a moved surface.

    The shifts s of the points minimise |p + s - closest(p + s)|^2 + length^4 |Laplacian s|^2, closest points
    and shifts in turn; the point next to each landmark is held to the landmark's own shift.

    Args:
        surface: the prediction.
        transform: prediction -> scan.
        points: of the scan's region.
        landmarks: the prediction's [K, 3], moved, and the scan's; K may be 0.
    """
    ours, theirs = landmarks
    tree = cKDTree(points)
    laplacian = _laplacian(points, tree)
    held = tree.query(theirs)[1] if len(theirs) else np.zeros(0, dtype=np.int64)
    shifts = np.zeros_like(points)
    for length in WARP_LENGTHS_MM:
        system = identity(len(points)) + length**4 * laplacian.T @ laplacian
        hold = np.zeros(len(points))
        hold[held] = LANDMARK_HOLD * system.diagonal()[held]
        pulls = np.zeros_like(points)
        pulls[held] = hold[held, None] * (ours - theirs)
        solve = splu((system + diags(hold)).tocsc()).solve
        for _ in range(WARP_STEPS):
            shifts = solve(_closest(surface, transform, points + shifts) - points + pulls)
    return points + shifts


def _laplacian(points: Floats, tree: cKDTree) -> coo_matrix:
    """Return the Laplacian [M, M] (1/mm^2) of functions on a surface through points, by their neighbours."""
    distances, neighbours = tree.query(points, k=NEIGHBOURS + 1)
    spacing = float(np.median(distances[:, 1:]))
    rows = np.repeat(np.arange(len(points)), NEIGHBOURS)
    ones = np.ones(len(rows))
    links = coo_matrix((ones, (rows, neighbours[:, 1:].ravel())), shape=(len(points), len(points)))
    return (identity(len(points)) - links / NEIGHBOURS) * (4.0 / spacing**2)
