"""Attacks that read data out of numbers, and what they get with ``privacy = local``.

On synthetic images of 64 pixels, and on a small run of a byte-level GPT. The attacker knows
parameters, directions and eps, as a server does. ``dandelion bench privacy --attacks`` runs the
same code on handwritten digits and on the demo's model.
"""

from math import exp

import numpy as np
import pytest
import torch
from small_config import small_config

from dandelion.privacy.attacks.inversion import Inverted, attack_batch, compare
from dandelion.privacy.attacks.ledger import attack_run
from dandelion.privacy.attacks.membership import LedgerOfImages
from dandelion.privacy.attacks.protection import area_under_curve, true_positives
from dandelion.privacy.attacks.report import describe, most_area
from dandelion.privacy.attacks.softmax import CLASSES, Softmax, problem
from dandelion.privacy.attacks.trap import attack_with_trap
from shared.privacy.accounting import noise_for
from shared.privacy.grid import from_grid, to_grid

DELTA, EPSILON = 1e-5, 2.0


def images(count, random):
    """Blobs (count, 64) in [0, 1], and their classes (count,): where the blob is."""
    classes = random.integers(0, CLASSES, count)
    rows, columns = np.mgrid[0:8, 0:8]
    angle = 2 * np.pi * classes[:, None, None] / CLASSES + random.normal(0, 0.2, (count, 1, 1))
    distance = (rows - 3.5 - 2.5 * np.sin(angle)) ** 2 + (columns - 3.5 - 2.5 * np.cos(angle)) ** 2
    blobs = np.exp(-distance / random.uniform(2, 6, (count, 1, 1))) * random.uniform(
        0.5, 1, (count, 1, 1)
    )
    noisy = blobs + random.normal(0, 0.15, blobs.shape)
    return noisy.clip(0, 1).reshape(count, -1), classes


def error_of_mean(pixels, others):
    return np.median(np.linalg.norm(pixels - others.mean(0), axis=1) / np.linalg.norm(pixels))


@pytest.mark.slow
def test_eighty_numbers_give_an_image_back_unless_they_are_private():
    pytest.importorskip("dp_accounting")
    pixels, classes = images(500, np.random.default_rng(1))
    noise = noise_for(EPSILON, DELTA, 100, 5)
    raw, private = (
        [attack_batch(pixels[[k]], classes[[k]], 80, k, each) for k in range(3)]
        for each in (0.0, noise)
    )
    assert np.median([each.error for each in raw]) < 0.05
    assert sum(each.labels for each in raw) == 3
    mean = [error_of_mean(pixels[[k]], pixels) for k in range(3)]
    assert np.median([each.error for each in private]) >= np.median(mean)


@pytest.mark.slow
def test_chosen_parameters_give_one_image_of_a_large_batch_unless_it_is_private():
    """A large batch protects nobody: the server's network lets the brightest image through."""
    pytest.importorskip("dp_accounting")
    pixels, classes = images(128, np.random.default_rng(3))
    raw = attack_with_trap(pixels, classes, 96, 0)
    assert raw.error < 0.3
    assert raw.labels == 1
    private = attack_with_trap(pixels, classes, 96, 0, noise_for(EPSILON, DELTA, 100, 5))
    assert private.error >= error_of_mean(pixels[[pixels.sum(1).argmax()]], pixels)


def test_a_guess_is_compared_in_its_best_order():
    pixels = np.eye(4)[:2]
    assert compare(pixels[::-1], np.array([1, 1]), pixels, np.array([1, 2])) == Inverted(0.0, 1, 2)


def ledger_of_images(epsilon):
    """Scores of 128 members and as many others of 60 rounds, B = 4 and q = 16."""
    pixels, classes = images(384, np.random.default_rng(100))
    return LedgerOfImages(pixels, classes, 4, 16, 60, epsilon).attack(100)


def test_a_ledger_tells_who_was_in_it():
    members = ledger_of_images(0.0)
    assert area_under_curve(members.inside, members.outside) > 0.85


@pytest.mark.slow
def test_a_private_ledger_tells_no_more_than_was_promised():
    pytest.importorskip("dp_accounting")
    members = ledger_of_images(EPSILON)
    error = 3 * np.sqrt(0.25 / len(members.inside))  # of a share, by the number of trials
    area = area_under_curve(members.inside, members.outside)
    assert area < min(0.5 + error, most_area(EPSILON, DELTA))
    for threshold in np.quantile(members.outside, [0.05, 0.5, 0.8, 0.9, 0.95, 0.99]):
        true, false = (members.inside > threshold).mean(), (members.outside > threshold).mean()
        assert true <= exp(EPSILON) * false + DELTA + error


def small_run(folder, name, **changes):
    changes = {"num_rounds": 5, "queries": 16, "zo_batch_size": 2, "eval_interval": 5, **changes}
    return small_config(folder, name, max_samples=40, block_size=32, eval_blocks=96, **changes)


def test_the_ledger_of_a_real_run_tells_which_texts_were_in_it(tmp_path):
    members = attack_run(small_run(tmp_path, "plain"))
    assert len(members.inside) == len(members.outside) == 10
    assert area_under_curve(members.inside, members.outside) > 0.75


def test_the_ledger_of_a_private_run_does_not(tmp_path):
    members = attack_run(
        small_run(tmp_path, "p", privacy="local", privacy_noise=2.0, privacy_clip=4.0)
    )
    assert area_under_curve(members.inside, members.outside) < 0.75


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_however_eps_is_chosen_one_example_moves_a_sum_by_a_clip(size):
    """Huge eps makes a threshold test of one example; clip and grid bound what it can show."""
    random = np.random.default_rng(2)
    each, clip = random.normal(0, size, (16, 5)), 1e-3
    moved = to_grid(each, clip).sum(1) - to_grid(each[:, 1:], clip).sum(1)
    assert np.linalg.norm(from_grid(moved, clip, 1)) <= clip * (1 + 1e-6)


def test_measured_differences_are_the_slopes_that_an_attack_computes():
    random = np.random.default_rng(4)
    pixels, classes = images(5, random)
    victim = Softmax.by_chance(random)
    z = victim.directions(7, random)
    exact = victim.slopes(pixels, classes, z)
    assert victim.differences(pixels, classes, z) == pytest.approx(exact, abs=2e-3)


def test_the_area_that_a_promise_allows():
    assert most_area(0.0, 0.0) == 0.5
    assert most_area(2.0, 0.0) == pytest.approx(0.8808, abs=1e-4)
    assert most_area(2.0, 1.0) == 1.0


def test_scores_are_counted_as_the_table_says():
    inside, outside = np.array([1.0, 3.0, 5.0, 7.0]), np.array([0.0, 2.0, 4.0, 6.0])
    assert area_under_curve(inside, outside) == 10 / 16
    assert true_positives(inside, outside, 0.0) == 0.25
    from dandelion.privacy.attacks.membership import Members

    assert describe(Members(inside, outside), 0.0) == "0.625, 0.25"


def test_the_digits_problem_is_a_softmax_of_centred_pixels():
    """By pictures of the server, which no site trains on and which are not evaluated."""
    model = problem.model()
    assert sum(each.numel() for each in model.parameters()) == 650
    training, held_out = problem.examples()[0], problem.evaluation()[0]
    assert len(training) + 200 + len(held_out) == 1797
    assert not torch.equal(model.mean, held_out.mean(0))
    centred = (torch.cat([training, held_out]) - model.mean) / model.deviation
    assert centred.mean().abs() < 0.05
    assert centred.square().mean() == pytest.approx(1, abs=0.1)
    assert torch.equal(model(training[:3]), model.linear(centred[:3]))
