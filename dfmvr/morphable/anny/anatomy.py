"""Where things are on the source mesh: vertex numbers of base.obj, checked by eye in three views.

Only the subject's left half (x > 0) and the middle are listed; the mirror map gives the right half.
"""

from __future__ import annotations

LANDMARKS_68_MIDDLE = {
    8: 5225,
    27: 132,
    28: 131,
    29: 201,
    30: 5054,
    33: 343,
    51: 466,
    57: 492,
    62: 474,
    66: 493,
}
"""iBUG number -> vertex, on the mirror plane."""

LANDMARKS_68_LEFT = {
    **dict(zip(range(9, 17), (7616, 10362, 7461, 7597, 11851, 11712, 12360, 12335), strict=True)),
    **dict(zip(range(22, 27), (7006, 6997, 6996, 6998, 7024), strict=True)),
    34: 7077,
    35: 7119,
    **dict(zip(range(42, 48), (6850, 6838, 6790, 6805, 6820, 6831), strict=True)),
    52: 7216,
    53: 7172,
    54: 7182,
    55: 7166,
    56: 7235,
    63: 7226,
    64: 7191,
    65: 7236,
}
"""iBUG number -> vertex, on the subject's left."""

LEFT_TO_RIGHT_68 = {
    **{9 + i: 7 - i for i in range(8)},
    **{22 + i: 21 - i for i in range(5)},
    34: 32,
    35: 31,
    42: 39,
    43: 38,
    44: 37,
    45: 36,
    46: 41,
    47: 40,
    52: 50,
    53: 49,
    54: 48,
    55: 59,
    56: 58,
    63: 61,
    64: 60,
    65: 67,
}
"""iBUG number on the left -> its mirror image on the right."""

LOWER_BROW_LEFT = (6984, 6983, 6980, 6979, 6981, 6982)
"""Lower edge of the left brow, from the nose outwards."""

UPPER_LID_MIDDLE, LOWER_LID_MIDDLE = 6785, 6828
NOSE_SIDE_UPPER, NOSE_SIDE_MIDDLE, NOSE_WING = 6941, 11708, 7099
"""Further points of the dense set, on the left."""

BROW_LINE = (
    ((7001, 0.5), (6983, 0.0), (7006, 0.5)),
    ((6983, 0.55), (7006, 0.45)),
    ((6980, 0.5), (6997, 0.5)),
    ((6979, 0.5), (6996, 0.5)),
    ((6981, 0.4), (6998, 0.6)),
    ((6982, 0.3), (6999, 0.7)),
    ((6987, 0.2), (7024, 0.8)),
)
"""Middle line of the left brow from the nose outwards, as weighted vertices."""

BROW_LIFT = (0.0, 1.0, 1.5, 1.5, 0.8, 0.0, -0.5)
"""mm added to the height of the points of BROW_LINE."""

BROW_HALF_WIDTH = ((0, 0.1, 0.35, 0.65, 0.9, 1), (3.2, 4.4, 4.6, 3.9, 2.4, 1.2))
"""Half width of the brow (mm) at shares of its length."""

NOSE_OUTLINE = (6977, 11703, 6973, 6978, 11673, 7099, 7057, 7119, 7121, 7120, 7077, 7104, 343)
"""Left outline of the nose seen from the front, from below the bridge to its base."""

NOSE_BRIDGE_HALF_WIDTH = ((27, 7.5), (28, 9.0), (29, 11.5))
"""Half width (mm) of the bridge at the height of iBUG points."""

UPPER_LIP_CONTACT = (7191, 7193, 7178, 7179, 7225, 11964, 7226, 7227, 7228, 7229, 474)
LOWER_LIP_CONTACT = (7191, 7204, 7197, 7230, 7236, 7242, 493)
"""Line along which the lips meet, from the left corner of the mouth to the middle."""
