"""WebDataset shards, written as ImageNet's are."""

import collections
import doctest

import numpy as np
import pytest
from recipes.image_files import write_shard
from torch.utils.data import DataLoader

from common.data import shards as image_shards
from common.data.shards import ImagesInShards

pytest.importorskip("webdataset")


def grey(image):
    """The brightness of an image, in place of a tensor."""
    return int(np.asarray(image).mean())


def keep(items):
    """A collate function that leaves items as they are."""
    return items


@pytest.fixture
def shards(tmp_path):
    """Four shards of five samples, labels 0 to 19."""
    for i in range(4):
        write_shard(tmp_path / f"val-{i}.tar", range(5 * i, 5 * i + 5))
    return str(tmp_path / "val-{0..3}.tar")


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(image_shards).failed == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_images_come_once(workers, shards):
    """Shards are split over the workers; in order without them."""
    loader = DataLoader(ImagesInShards(shards, grey), 3, num_workers=workers, collate_fn=keep)
    items = [item for batch in loader for item in batch]
    assert sorted(label for _, label in items) == list(range(20))
    assert all(image == label for image, label in items)


def test_shards_are_split_over_processes(shards, monkeypatch):
    """Two processes share them without overlap."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        parts.append([label for _, label in ImagesInShards(shards, grey)])
    assert sorted(parts[0] + parts[1]) == list(range(20))
    assert len(parts[0]) == 10


def test_training_images_are_shuffled_by_the_seed_and_never_end(shards):
    """Every process can take the same number of steps, two networks see the same order."""

    def first(n, seed):
        stream = iter(ImagesInShards(shards, grey, endless=True, seed=seed))
        return [next(stream)[1] for _ in range(n)]

    assert first(60, 0) == first(60, 0)
    assert first(60, 0) != first(60, 1)
    assert first(20, 0) != sorted(first(20, 0))
    assert first(200, 0)[:100] != first(200, 0)[100:]
    assert max(collections.Counter(first(1000, 0)).values()) < 80  # 50 each, but for what waits in the buffer


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_an_unreadable_image_comes_as_its_name(content, tmp_path):
    """For the collate function to leave it out and to name it."""
    write_shard(tmp_path / "a.tar", [3], image=content)
    assert list(ImagesInShards(str(tmp_path / "a.tar"), grey)) == [(f"{tmp_path}/a.tar/a_0", 3)]


def test_a_damaged_shard_is_named_in_a_warning_and_others_are_read(shards, tmp_path):
    """One bad file among many must not end a run."""
    damaged = tmp_path / "val-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:3100])
    with pytest.warns(UserWarning, match=r"val-1\.tar"):
        labels = [label for _, label in ImagesInShards(shards, grey)]
    assert set(range(20)) - set(range(5, 10)) <= set(labels)


def test_samples_without_a_class_are_refused(tmp_path):
    """They are not damaged but of another kind."""
    write_shard(tmp_path / "a.tar", [3], names=("jpg", "txt"))
    with pytest.raises(ValueError, match=r"a_0 expected cls and one of jpg, jpeg, png, webp, has jpg, txt"):
        next(iter(ImagesInShards(str(tmp_path / "a.tar"), grey)))


def test_a_missing_shard_is_an_error(shards, tmp_path):
    """Named before anything is read."""
    (tmp_path / "val-2.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no .*val-2\.tar \(1 missing\)"):
        ImagesInShards(shards, grey)
