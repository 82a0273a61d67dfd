"""Which images are the worst and the best; that their pictures are right is tested with the recipe that shows them."""

import doctest

from common import explained_images
from common.explained_images import extremes


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(explained_images).failed == 0


def test_both_ends_without_images_that_have_no_value():
    """Three at each end; of few images each once."""
    assert set(extremes([3.0, 0.0, float("nan"), 9.0, 4.0, 5.0, 6.0, 8.0])) == {1, 0, 4, 3, 7, 6}
    assert sorted(extremes([2.0, 1.0])) == [0, 1]
    assert extremes([float("nan")]) == []
