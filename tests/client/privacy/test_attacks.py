"""Attacks that read data out of numbers, and what they get with ``privacy = local``.

A softmax on synthetic images of 64 pixels, as the explanation's own figures are of 8 × 8 digits.
The attacker knows parameters, directions and eps, as a server does.
"""

from math import exp

import numpy as np
import pytest
import torch

from shared.privacy.accounting import noise_for
from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.grid import from_grid, noise_steps, to_grid
from shared.privacy.keystream import KeyStream, sample_units

PIXELS, CLASSES, DELTA, EPSILON = 64, 10, 1e-5, 2.0
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(0, 0.3, (CLASSES, PIXELS + 1))


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


def slopes(x, classes, z):
    """The slopes (q, n) of each example's loss along directions z (q, 10, 65)."""
    x1 = np.hstack([x, np.ones((len(x), 1))])
    scores = x1 @ WEIGHTS.T
    error = np.exp(scores - scores.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(x)), classes] -= 1
    return np.einsum("nk,qkp,np->qn", error, z, x1, optimize=True)


def signs(queries, random):
    return random.choice([-1.0, 1.0], (queries, CLASSES, PIXELS + 1))


def noisy_mean(each, clip, noise, batch, name):
    """What a private site sends of slopes (q, n): clip is that of the q numbers together."""
    stream = KeyStream(b"k" * 32, "noise", name.to_bytes(32, "little"))
    total = to_grid(each, clip).sum(1) + discrete_gaussians(stream, noise_steps(noise), len(each))
    return from_grid(total, clip, batch)


def invert(numbers, z):
    """The image (64,) in [0, 1], with a soft label, that explains a batch of one best."""
    torch.manual_seed(0)
    target, known = torch.tensor(numbers, dtype=torch.float64), torch.tensor(z)
    weights, best = torch.tensor(WEIGHTS), (np.inf, None)
    for _ in range(3):
        free = torch.randn(PIXELS + CLASSES, dtype=torch.float64).mul_(0.1).requires_grad_()

        def misfit(free=free):
            x1 = torch.cat([torch.sigmoid(free[:PIXELS]), torch.ones(1, dtype=torch.float64)])
            label = torch.softmax(free[PIXELS:] * 5, 0)
            error = torch.softmax(weights @ x1, 0) - label
            return ((torch.einsum("k,qkp,p->q", error, known, x1) - target) ** 2).mean()

        optimizer = torch.optim.LBFGS([free], max_iter=400, line_search_fn="strong_wolfe")

        def closure(misfit=misfit, optimizer=optimizer):
            optimizer.zero_grad()
            loss = misfit()
            loss.backward()
            return loss

        optimizer.step(closure)
        rest = float(misfit().detach())
        if rest < best[0]:
            best = rest, torch.sigmoid(free[:PIXELS]).detach().numpy()
    return best[1]


def error_of(guess, image):
    return float(np.linalg.norm(guess - image) / np.linalg.norm(image))


def test_eighty_numbers_give_an_image_back_unless_they_are_private():
    pytest.importorskip("dp_accounting")
    random = np.random.default_rng(1)
    x, classes = images(3, random)
    others, _ = images(500, random)
    raw, private, mean = [], [], []
    noise = noise_for(EPSILON, DELTA, 100, 5)
    for number in range(3):
        z = signs(80, random)
        each = slopes(x[number : number + 1], classes[number : number + 1], z)
        clip = float(np.linalg.norm(each)) / 2
        raw.append(error_of(invert(each[:, 0], z), x[number]))
        sent = noisy_mean(each, clip, noise, 1, number)
        private.append(error_of(invert(sent, z), x[number]))
        mean.append(error_of(others.mean(0), x[number]))
    assert np.median(raw) < 0.05
    assert np.median(private) >= np.median(mean)


def auc(members, others):
    """The probability that a member scores above another."""
    return float((members[:, None] > others[None]).mean())


def attack_ledger(is_private, rounds=60, count=128, batch=4, queries=16, repeats=3):
    """Scores of members, and of others, from all numbers that a site has sent.

    The score is the likelihood ratio of Gaussians: what the candidate alone would have added,
    against the covariance of the attacker's own images.
    """
    noise = noise_for(EPSILON, DELTA, rounds, 5) if is_private else 0.0
    members, others = [], []
    for repeat in range(repeats):
        random = np.random.default_rng(100 + repeat)
        (x, y), (foreign, of_foreign), (own, of_own) = (images(count, random) for _ in range(3))
        scores = np.zeros((2, count))
        for round_ in range(rounds):
            z = signs(queries, random)
            inside, outside = slopes(x, y, z), slopes(foreign, of_foreign, z)
            known = slopes(own, of_own, z)
            clip = float(np.median(np.linalg.norm(known, axis=0)))
            if is_private:
                name = repeat * 1000 + round_
                stream = KeyStream(b"k" * 32, "rows", name.to_bytes(32, "little"))
                rows = sample_units(stream, count, 5)
                sent = noisy_mean(inside[:, rows], clip, noise, batch, name)
                candidates = [np.arange(count)] * 2  # nobody knows the rows
                scale = np.minimum(1, clip / np.linalg.norm(known, axis=0))
                known = known * scale
            else:
                rows = random.choice(count, batch, replace=False)
                sent = inside[:, rows].mean(1)
                candidates = [rows, rows]  # a function of public seeds
            covariance = np.cov(known) / batch + np.eye(queries) * (
                1e-9 + (noise * clip / batch) ** 2
            )
            residual = np.linalg.solve(covariance, sent - known.mean(1))
            for kind, each in enumerate((inside, outside)):
                scores[kind, candidates[kind]] += residual @ (
                    each[:, candidates[kind]] / batch
                ) - 0.5 * np.einsum(
                    "qn,qn->n",
                    each[:, candidates[kind]] / batch,
                    np.linalg.solve(covariance, each[:, candidates[kind]] / batch),
                )
        members.append(scores[0])
        others.append(scores[1])
    return np.concatenate(members), np.concatenate(others)


def test_a_ledger_tells_who_was_in_it():
    members, others = attack_ledger(is_private=False)
    assert auc(members, others) > 0.85


def test_a_private_ledger_tells_no_more_than_was_promised():
    pytest.importorskip("dp_accounting")
    members, others = attack_ledger(is_private=True)
    assert auc(members, others) < 0.65
    error = 3 * np.sqrt(0.25 / len(members))  # of a share, by the number of trials
    for threshold in np.quantile(others, [0.05, 0.5, 0.8, 0.9, 0.95, 0.99]):
        true, false = (members > threshold).mean(), (others > threshold).mean()
        assert true <= exp(EPSILON) * false + DELTA + error


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_however_eps_is_chosen_one_example_moves_a_sum_by_a_clip(size):
    """Huge eps makes a threshold test of one example; clip and grid bound what it can show."""
    random = np.random.default_rng(2)
    each, clip = random.normal(0, size, (16, 5)), 1e-3
    moved = to_grid(each, clip).sum(1) - to_grid(each[:, 1:], clip).sum(1)
    assert np.linalg.norm(from_grid(moved, clip, 1)) <= clip * (1 + 1e-6)
