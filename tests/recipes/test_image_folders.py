"""Class folders: whose index they stand for, and files that cannot be read."""

import doctest

import numpy as np
import pytest
from hostile_images import write_no_images, write_odd
from PIL import Image
from recipes.image_files import HEN, TENCH, write_images

from common.data import folders as image_folders
from common.data.folders import ImagesInFolders, class_index, images_in_folders


def loaded(root):
    """Training images, validation images, and names of the classes; images are left as they are."""
    return images_in_folders(root, lambda image: image, lambda image: image)


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(image_folders).failed == 0


def test_a_subset_of_imagenet_keeps_the_index_of_all_classes(tmp_path):
    """Weights trained on ImageNet can be evaluated on some of its classes."""
    write_images(tmp_path / "val", {TENCH: 1, HEN: 2})
    train, val, names = loaded(tmp_path)
    assert train is None
    assert sorted(label for _, label in val) == [0, 8, 8]
    assert len(names) == 1000
    assert names[8] == "hen"


def test_other_folders_are_the_classes_in_the_order_of_their_names(tmp_path):
    """As torchvision does."""
    write_images(tmp_path / "train", {"dog": 1, "cat": 2})
    write_images(tmp_path / "val", {"dog": 1, "cat": 1})
    train, _, names = loaded(tmp_path)
    assert names == ["cat", "dog"]
    assert [label for _, label in train] == [0, 0, 1]


def test_a_class_without_validation_images_does_not_shift_the_labels(tmp_path):
    """The classes are those of the training folder; there, too, a folder may be empty."""
    write_images(tmp_path / "train", {"ant": 0, "cat": 1, "dog": 1})
    write_images(tmp_path / "val", {"dog": 1})
    _, val, names = loaded(tmp_path)
    assert names[val[0][1]] == "dog"


def test_the_first_validation_images_are_a_fair_sample_in_a_fixed_order(tmp_path):
    """Not all of the first class, which is what a sorted list would begin with."""
    write_images(tmp_path / "val", {"cat": 30, "dog": 30})
    first, second = loaded(tmp_path)[1], loaded(tmp_path)[1]
    assert 5 <= sum(label for _, label in first.samples[:20]) <= 15
    assert first.samples == second.samples


def test_hidden_folders_are_no_classes(tmp_path):
    """Notebooks leave them behind."""
    write_images(tmp_path / "val", {"cat": 1, ".ipynb_checkpoints": 1})
    assert loaded(tmp_path)[2] == ["cat"]


def broken(kind, path):
    """A file that looks like an image by its name."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"not an image", "cut": data[: len(data) // 2]}[kind])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_an_unreadable_file_comes_as_its_path(kind, suffix, tmp_path):
    """For the collate function to leave it out and to name it; its neighbour is read."""
    write_images(tmp_path / "val", {"cat": 1})
    path = tmp_path / "val" / "cat" / f"broken.{suffix}"
    broken(kind, path)
    items = [image for image, _ in loaded(tmp_path)[1]]
    assert str(path) in items
    assert len(items) == 2


def test_an_error_of_the_transform_is_not_taken_for_an_unreadable_file(tmp_path):
    """Else a wrong setting would silently skip every image."""
    write_images(tmp_path, {"cat": 1})

    def wrong(image):
        raise ValueError("wrong setting")

    with pytest.raises(ValueError, match="wrong setting"):
        ImagesInFolders(tmp_path, {"cat": 0}, wrong)[0]


def test_unknown_folders_beside_wordnet_ids_are_refused():
    """They have no place among the 1000 classes."""
    with pytest.raises(ValueError, match=r"got others among them: kitten\. Rename or remove these"):
        class_index([TENCH, "kitten"])


@pytest.mark.parametrize(("train", "val"), [("cat", "dog"), (TENCH, "dog"), ("cat", TENCH)])
def test_validation_folders_unknown_to_training_are_refused(train, val, tmp_path):
    """Whichever of the two are WordNet ids."""
    write_images(tmp_path / "train", {train: 1})
    write_images(tmp_path / "val", {val: 1})
    with pytest.raises(ValueError, match=f"got unknown ones: {val}"):
        loaded(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    """Neither layout nor images."""
    with pytest.raises(FileNotFoundError, match=r"expected a folder with val/<class>/ .* got "):
        loaded(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected images in class folders in .*val, found none"):
        loaded(tmp_path)
    (tmp_path / "val" / "cat").mkdir()
    (tmp_path / "val" / "cat" / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match="found none"):
        loaded(tmp_path)


def test_files_and_names_of_strangers_are_shown_right_or_come_as_their_path(tmp_path):
    """Odd images are images; what only has the name of one is not waited for, and names of classes are only names."""
    classes = ("<script>", "\u732b")
    for name in classes:
        (tmp_path / "val" / name).mkdir(parents=True)
    odd, wrong = write_odd(tmp_path / "val" / classes[0]), write_no_images(tmp_path / "val" / classes[1])
    _, shown, names = images_in_folders(tmp_path, np.asarray, np.asarray)
    assert names == sorted(classes)
    found = [shown[i][0] for i in range(len(shown))]
    assert sum(isinstance(one, np.ndarray) and one.shape == (8, 16, 3) for one in found) == len(odd) - 1  # no gif
    assert {one for one in found if isinstance(one, str)} == {
        str(one) for one in wrong if one.suffix in (".jpg", ".png")
    }
