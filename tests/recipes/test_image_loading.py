"""Batches: every image once, in a known order, unreadable ones named."""

import doctest
import itertools

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset
from torchmetrics import CatMetric

from common.data import loading as image_loading
from common.data.loading import EachOnce, ImageData, readable, without_empty


class Numbers(Dataset):
    """Image i is full of i; some cannot be read."""

    def __init__(self, n, broken=()):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return (f"{i}.jpg" if i in self.broken else torch.full((3, 2, 2), float(i))), i


def data(n=10, broken=(), batch_size=4, **options):
    """The numbers, both to train and to validate on."""
    numbers = Numbers(n, broken)
    settings = {"mean": (0,) * 3, "std": (1,) * 3, "image_size": 2, "batch_size": batch_size}
    return ImageData(numbers, numbers, [str(i) for i in range(n)], **settings, **options)


def seen(loader):
    """Labels of all batches in order, and the names of what could not be read."""
    batches = list(loader)
    assert all(torch.equal(images[:, 0, 0, 0], labels.float()) for images, labels, _ in batches)
    return torch.cat([labels for _, labels, _ in batches]).tolist(), [one for *_, names in batches for one in names]


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(image_loading).failed == 0


def test_validation_images_come_once_and_in_order():
    """Also in the last, smaller batch."""
    assert seen(data(10).val_dataloader()) == (list(range(10)), [])


@pytest.mark.parametrize("world", [2, 3, 8])
def test_no_process_sees_a_copy(world):
    """A DistributedSampler would repeat images so that all processes have equally many."""
    parts = [list(EachOnce(range(10), world, rank)) for rank in range(world)]
    assert sorted(itertools.chain(*parts)) == list(range(10))
    assert [len(EachOnce(range(10), world, rank)) for rank in range(world)] == [len(part) for part in parts]


def test_the_order_of_training_depends_on_seed_and_epoch_alone():
    """So that two networks see the same batches, and a resumed run goes on as it would have."""

    def order(seed, epoch):
        loader = data(seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        torch.rand(1)  # the global generator has no say
        return seen(loader)[0]

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == list(range(10))
    assert len({tuple(order(seed, epoch)) for seed in (0, 10) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(workers):
    """Nothing takes their place: a copy would count twice in the metrics."""
    labels, names = seen(data(10, broken=(2, 9), workers=workers).val_dataloader())
    assert labels == [0, 1, 3, 4, 5, 6, 7, 8]
    assert names == ["2.jpg", "9.jpg"]


@pytest.mark.parametrize("broken", [(0, 1), (4, 5), (8, 9), (0, 1, 2, 3, 8, 9)])
def test_a_batch_of_unreadable_images_is_left_out_and_its_names_are_kept(broken):
    """At the start, in the middle, at the end."""
    labels, names = seen(data(10, broken=broken, batch_size=2).val_dataloader())
    assert labels == [i for i in range(10) if i not in broken]
    assert names == [f"{i}.jpg" for i in broken]


def test_in_training_other_batches_take_the_place_of_empty_ones():
    """Processes that train together must have equally many steps; no name is given twice."""
    batches = [readable([(torch.ones(1), 0)]), readable([("1.jpg", 1)]), readable([("2.jpg", 2)])]
    for order in itertools.permutations(batches):
        found = list(without_empty(order, refill=True))
        assert [labels.tolist() for _, labels, _ in found] == [[0], [0], [0]]
        assert sorted(name for *_, names in found for name in names) == ["1.jpg", "2.jpg"]


def test_only_unreadable_images_are_an_error():
    """Nothing could be computed."""
    with pytest.raises(RuntimeError, match=r"expected readable images, got none: 0.jpg, 1.jpg"):
        list(without_empty([readable([("0.jpg", 0), ("1.jpg", 0)])]))


class Recorder(pl.LightningModule):
    """Keeps the labels that each loop sees; its BatchNorm is what uneven processes could trip over."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
        self.trained, self.validated = [], CatMetric()

    def training_step(self, batch, batch_idx):
        self.trained.append(batch[1].tolist())
        return self.model(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        self.model(batch[0])
        self.validated.update(batch[1])

    def on_validation_epoch_end(self):
        found = self.validated.compute().sort().values
        assert found.tolist() == [i for i in range(len(found) + 2) if i not in (3, 4)]
        self.validated.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(folder, **options):
    """A quiet one on the CPU."""
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **off, **options)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # advice about speed
def test_a_trainer_sees_each_epoch_in_another_order_and_skips_what_is_unreadable(tmp_path):
    """A validation loader that ends before its announced length is fine."""
    module = Recorder()
    trainer(tmp_path, devices=1, max_epochs=2).fit(module, data(10, broken=(3, 4), batch_size=1))
    trained = list(itertools.chain(*module.trained))
    assert len(trained) == 20
    assert set(trained[:10]) == set(trained[10:]) == set(range(10)) - {3, 4}
    assert trained[:10] != trained[10:]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # advice about speed
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # what the strategy does
def test_two_processes_validate_each_image_once(tmp_path):
    """With unequal numbers of images and of batches: 13 images, 2 of them unreadable, in batches of 2."""
    if not torch.distributed.is_available():
        pytest.skip("needs torch.distributed")
    trainer(tmp_path, devices=2, max_epochs=1, strategy="ddp_fork").fit(
        Recorder(), data(13, broken=(3, 4), batch_size=2)
    )
