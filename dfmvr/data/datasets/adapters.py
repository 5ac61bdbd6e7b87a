"""The data sets of photographs that can be prepared, by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping

from dfmvr.data.datasets import bosphorus, facescape, folder, multi_pie, pixel_face
from dfmvr.data.datasets.records import Problem, Record

ADAPTERS = ("folder", "pixel_face", "multi_pie", "bosphorus", "facescape")

_Adapter = Callable[..., Iterator[Record | Problem]]


def open_records(dataset: str, root: str, options: Mapping[str, str]) -> Iterator[Record | Problem]:
    """Read a data set.

    Args:
        dataset: one of ADAPTERS.
        root: its folder, local or s3://.
        options: of the data set's `iter_records`, by name.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: the folder is not such a data set, or a name or an option is unknown or wrong.
    """
    adapter = _adapter(dataset)
    known = option_names(dataset)
    for name in options:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none"
            raise ValueError(f"option of {dataset}: expected {expected}, got {name!r}{_hint(name, known)}")
    return adapter(root, **options)


def option_names(dataset: str) -> tuple[str, ...]:
    """Return the options of a data set.

    Raises:
        ValueError: the data set is unknown.
    """
    parameters = inspect.signature(_adapter(dataset)).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _adapter(dataset: str) -> _Adapter:
    match dataset:
        case "folder":
            return folder.iter_records
        case "pixel_face":
            return pixel_face.iter_records
        case "multi_pie":
            return multi_pie.iter_records
        case "bosphorus":
            return bosphorus.iter_records
        case "facescape":
            return facescape.iter_records
    raise ValueError(
        f"dataset: expected one of {', '.join(ADAPTERS)}, got {dataset!r}{_hint(dataset, ADAPTERS)}"
    )


def _hint(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
