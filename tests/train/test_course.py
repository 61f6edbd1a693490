"""What the steps of a fit add up to."""

import torch

from flashace.train.course import Course, Means, Tally


def test_a_tally_gives_means_and_begins_again():
    tally = Tally()
    assert tally.take() == Means([0.0] * 3, [0.0] * 3)
    tally.add(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float32))
    tally.add(torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float32))
    assert tally.steps == 2
    assert tally.take() == Means([2.0, 2.0, 2.0], [2.0, 3.0, 3.0])
    assert tally.steps == 0


def test_a_tally_comes_back_from_its_numbers():
    tally = Tally()
    tally.add(torch.ones(2, 3))
    assert tally.numbers.tolist() == [1.0] * Tally.SIZE
    assert Tally(tally.numbers.clone()).take() == tally.take()


def test_steps_and_epochs():
    course = Course(per_epoch=4, epoch=2, position=3)
    assert (course.steps, course.epochs) == (11, 2.75)
