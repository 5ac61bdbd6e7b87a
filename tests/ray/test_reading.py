from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dfmvr.data import storage
from dfmvr.data.rejects import Rejects, TooManyBadRows
from dfmvr.data.sample import SCAN_COLUMNS, Sample, encode_sample, rows_to_parquet
from dfmvr.data.settings import DataSettings
from dfmvr.morphable.model import MorphableModel
from dfmvr.types import ViewBatch
from ray_jobs.reading import iterate_batches, steps_per_epoch, training_dataset, validation_batches

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

MakeSample = Callable[..., Sample]
SEED = 7


def settings_for(uri: str | Path, **changes: Any) -> DataSettings:
    return DataSettings(
        **({"uri": str(uri), "image_size": 32, "batch_size": 4, "shuffle_rows": 16} | changes)
    )


def read_epochs(
    settings: DataSettings, epochs: Sequence[int], skip: int = 0, rejects: Rejects | None = None
) -> list[list[ViewBatch]]:
    """Train's batches of some epochs in a row, as one process reads them after a start at the first."""
    shard = training_dataset(settings, "train", seed=SEED, start_epoch=epochs[0]).iterator()
    found = rejects or Rejects(0.0, 48)
    return [
        list(
            iterate_batches(
                shard,
                settings,
                epoch=epoch,
                seed=SEED,
                rejects=found,
                augment=True,
                skip_batches=skip if epoch == epochs[0] else 0,
            )
        )
        for epoch in epochs
    ]


def ids(batches: Sequence[ViewBatch]) -> list[tuple[str, ...]]:
    return [batch.sample_ids for batch in batches]


@pytest.fixture(scope="module")
def epochs(small_dataset: Path, ray_cluster: None) -> list[list[ViewBatch]]:
    return read_epochs(settings_for(small_dataset), (0, 1, 2))


def test_an_epoch_has_every_sample_once_in_another_order(epochs: list[list[ViewBatch]]) -> None:
    orders = [[name for names in ids(batches) for name in names] for batches in epochs]
    for order in orders:
        assert sorted(order) == [f"s{k:03d}-e00" for k in range(48)]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != sorted(orders[0])
    first_files = {int(name[1:4]) // 8 for order in orders for name in order[:1]}
    assert len(first_files) > 1  # files are shuffled, not only rows


def test_a_restart_in_the_middle_of_an_epoch_goes_on_with_the_same_batches(
    small_dataset: Path, epochs: list[list[ViewBatch]]
) -> None:
    resumed = read_epochs(settings_for(small_dataset), (1, 2), skip=5)
    assert ids(resumed[0]) == ids(epochs[1][5:])
    assert ids(resumed[1]) == ids(epochs[2])
    for ours, theirs in zip(resumed[0], epochs[1][5:], strict=True):
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=0)  # augmented alike


def read_ranks(
    settings: DataSettings, epochs: Sequence[int], skip: int = 0
) -> dict[tuple[int, int], list[tuple[str, ...]]]:
    """Sample names by (rank, epoch), as two ranks read them side by side after a start at the first epoch."""
    dataset = training_dataset(settings, "train", seed=SEED, start_epoch=epochs[0])
    shards = dataset.streaming_split(2, equal=True)
    seen: dict[tuple[int, int], list[tuple[str, ...]]] = {}

    def read(rank: int) -> None:
        for epoch in epochs:
            batches = iterate_batches(
                shards[rank],
                settings,
                epoch=epoch,
                seed=SEED,
                rejects=Rejects(0.0, 48),
                rank=rank,
                skip_batches=skip if epoch == epochs[0] else 0,
            )
            seen[rank, epoch] = ids(list(batches))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def test_ranks_share_the_rows_step_alike_and_go_on_after_a_restart(small_dataset: Path) -> None:
    settings = settings_for(small_dataset, batch_size=5)
    seen = read_ranks(settings, (0, 1))
    for epoch in (0, 1):
        assert [len(seen[rank, epoch]) for rank in (0, 1)] == [steps_per_epoch(48, settings, 2)] * 2 == [4, 4]
        everyone = list(itertools.chain.from_iterable(seen[0, epoch] + seen[1, epoch]))
        assert len(set(everyone)) == len(everyone) == 40
    assert seen[0, 0] != seen[0, 1]
    resumed = read_ranks(settings, (1,), skip=2)
    assert [resumed[rank, 1] for rank in (0, 1)] == [seen[rank, 1][2:] for rank in (0, 1)]


def test_single_views_are_the_same_pictures_one_by_one(
    small_dataset: Path, epochs: list[list[ViewBatch]]
) -> None:
    batches = read_epochs(settings_for(small_dataset, single_views=True), (0,))[0]
    together, split = epochs[0][0], batches[0]
    assert split.images.shape == (4 * 3, 1, 3, 32, 32)
    assert torch.equal(split.images[:, 0], together.images.flatten(0, 1))
    assert split.sample_ids[::3] == together.sample_ids


def test_validation_keeps_the_order_and_the_last_rows(small_dataset: Path) -> None:
    settings = settings_for(small_dataset, batch_size=5)
    dataset = training_dataset(settings, "validation", truth=["dense_vertices"])
    assert set(dataset.schema().names) >= {"path", "row", "dense_vertices"}
    assert "scan_vertices" not in dataset.schema().names
    batches = list(validation_batches(dataset.iterator(), settings, Rejects(0.0, 8)))
    assert [name for batch in batches for name in batch.views.sample_ids] == [
        f"s{k:03d}-e00" for k in range(48, 56)
    ]
    assert [batch.views.images.shape[0] for batch in batches] == [5, 3]
    assert batches[1].dense_vertices is not None
    assert batches[1].dense_vertices.shape == (3, *MorphableModel.load(level=1).mean_shape.shape)


def test_validation_without_truth(small_dataset: Path) -> None:
    settings = settings_for(small_dataset)
    shard = training_dataset(settings, "validation").iterator()
    assert next(validation_batches(shard, settings, Rejects(0.0, 8))).dense_vertices is None


def test_object_storage_is_read_like_a_disk(
    small_dataset: Path, epochs: list[list[ViewBatch]], s3_server: str
) -> None:
    uri = f"{s3_server}/sets/small"
    for file in (small_dataset / "train").iterdir():
        storage.write_bytes(storage.join(uri, "train", file.name), file.read_bytes())
    assert ids(read_epochs(settings_for(uri), (0,))[0]) == ids(epochs[0])


@pytest.fixture(scope="module")
def damaged(make_sample: MakeSample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows in 6 files; rows 1 and 2 of the second file are bad, and so is the whole last file."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = [encode_sample(make_sample(k)) for k in range(48)]
    for k in (9, *range(40, 48)):
        rows[k]["images"] = [b"", *rows[k]["images"][1:]]
    rows[10]["landmarks_3d"] = rows[10]["landmarks_3d"][:-4]
    for part in range(6):
        chunk = [{"row": k, **row} for k, row in enumerate(rows[8 * part : 8 * part + 8])]
        storage.write_bytes(str(folder / "train" / f"part-{part:05d}.parquet"), rows_to_parquet(chunk))
    return folder


def test_bad_rows_are_set_aside_and_every_batch_is_full(damaged: Path, tmp_path: Path) -> None:
    rejects = Rejects(0.25, 48, str(tmp_path / "rejects.jsonl"))
    batches = read_epochs(settings_for(damaged), (0, 1), rejects=rejects)
    for epoch in batches:
        assert [len(batch.sample_ids) for batch in epoch] == [4] * 12
        good = {f"s{k:03d}-e00" for k in range(40)} - {"s009-e00", "s010-e00"}
        assert {name for batch in epoch for name in batch.sample_ids} == good
    assert len(rejects.items) == 10
    reasons = {(Path(item["file"]).name, item["row"]): item["reason"] for item in rejects.items}
    assert reasons["part-00001.parquet", 1].startswith("images[left]: expected a JPEG")
    assert reasons["part-00001.parquet", 2].startswith("landmarks_3d: expected 1212 bytes")
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 10


def test_too_many_bad_rows_stop_training(damaged: Path) -> None:
    with pytest.raises(TooManyBadRows, match=r"5 of 48 rows are bad, expected a share of at most 0.1"):
        read_epochs(settings_for(damaged), (0,), rejects=Rejects(0.1, 48))


def test_a_set_without_one_good_row_is_an_error(damaged: Path, tmp_path: Path) -> None:
    bad = damaged / "train" / "part-00005.parquet"
    storage.write_bytes(str(tmp_path / "train" / "part-00000.parquet"), bad.read_bytes())
    with pytest.raises(TooManyBadRows, match="none of 8 rows could be decoded; the last"):
        read_epochs(settings_for(tmp_path), (0,), rejects=Rejects(1.0, 8))


def test_batches_before_the_first_good_row_are_made_up_for(damaged: Path, tmp_path: Path) -> None:
    for part, name in enumerate(("part-00005.parquet", "part-00000.parquet")):
        data = (damaged / "train" / name).read_bytes()
        storage.write_bytes(str(tmp_path / "train" / f"part-{part:05d}.parquet"), data)
    settings = settings_for(tmp_path)

    def in_order() -> Iterator[ViewBatch]:
        shard = training_dataset(settings, "train").iterator()
        rejects = Rejects(0.5, 16)
        return iterate_batches(shard, settings, epoch=0, seed=SEED, rejects=rejects, shuffle=False)

    assert ids(list(in_order())) == [
        ("s003-e00",) * 4,
        ("s003-e00",) * 4,
        tuple(f"s{k:03d}-e00" for k in range(4)),
        tuple(f"s{k:03d}-e00" for k in range(4, 8)),
    ]


def test_wrong_places_are_refused(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'training'"):
        training_dataset(settings_for(small_dataset), "training")
    with pytest.raises(FileNotFoundError, match=r"train: expected \.parquet files, found none"):
        training_dataset(settings_for(tmp_path), "train")
    with pytest.raises(ValueError, match=r"expected at least 2 x 4 rows, the batches of a step .*, got 7"):
        steps_per_epoch(7, settings_for(tmp_path), 2)


def test_evaluation_reads_the_whole_truth(small_dataset: Path) -> None:
    dataset = training_dataset(settings_for(small_dataset), "test", truth=SCAN_COLUMNS)
    rows = dataset.take_all()
    assert len(rows) == 6
    assert all(len(row["scan_triangles"]) == 13 * 3 * 4 for row in rows)
