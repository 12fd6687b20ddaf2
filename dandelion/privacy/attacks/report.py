"""``dandelion bench privacy --attacks``: what each attack reads without privacy, and with ε = 2."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dandelion.privacy.attacks.inversion import Inverted, attack_batch
from dandelion.privacy.attacks.ledger import attack_run
from dandelion.privacy.attacks.membership import LedgerOfImages, Members
from dandelion.privacy.attacks.protection import Array, area_under_curve, true_positives
from dandelion.privacy.attacks.softmax import digits
from dandelion.privacy.attacks.trap import attack_with_trap
from dandelion.privacy.trials import own_state
from shared.privacy.accounting import noise_for
from shared.training.validate import configure

EPSILON, DELTA = 2.0, 1e-5
ROUNDS, RATE_BITS = 1000, 6  # that the noise of the single rounds below is for
TRIES = 5
BATCHES = ((1, 16), (1, 32), (1, 64), (1, 128), (4, 64), (4, 256))  # images, numbers
LEDGERS = ((4, 16), (4, 64), (16, 64))
MEMBERS, LEDGER_ROUNDS = 200, 100
TRAP_BATCH, TRAP_NUMBERS = 512, 96
TEXTS = {
    "num-clients": 2, "queries": 32, "zo-batch-size": 4, "num-rounds": 10, "eval-interval": 10,
    "max-samples": 60, "eval-blocks": 192, "save-model": False, "threads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class AttackRow:
    """What one attack reads."""

    attack: str
    measure: str
    plain: str  # without privacy
    private: str  # with EPSILON
    bound: str  # what an attack without the numbers gets, or what the promise allows


def most_area(epsilon: float, delta: float) -> float:
    """The largest area under the curve that any test has against an (ε, δ) promise.

    One minus the area under the trade-off between both errors (Kairouz et al. 2015,
    https://arxiv.org/abs/1311.0776): max(0, 1 - δ - e^ε a, (1 - δ - a) / e^ε).
    """
    return 1 - (1 - delta) ** 2 / (1 + exp(epsilon))


def measure_attacks(say: Callable[[str], None] = lambda line: None) -> list[AttackRow]:
    """Run every attack, from the fastest to the slowest.

    Args:
        say: is called with each row as text once it is measured.
    """
    rows = list[AttackRow]()
    for part in (_invert, _ask_for_members, _set_trap, _read_ledger):
        for row in part():
            rows.append(row)
            say(f"{row.attack}: {row.plain}; private: {row.private}")
    return rows


def _invert() -> Iterator[AttackRow]:
    pixels, labels = digits()
    noise = noise_for(EPSILON, DELTA, ROUNDS, RATE_BITS)
    for batch, queries in BATCHES:
        both = [
            [
                attack_batch(pixels[rows], labels[rows], queries, seed, each)
                for seed in range(TRIES)
                for rows in [slice(seed * batch, (seed + 1) * batch)]
            ]
            for each in (0.0, noise)
        ]
        plain, private = map(_describe, both)
        yield AttackRow(
            f"inversion, B = {batch}, q = {queries}", "image error; labels", plain, private,
            _mean_image(pixels),
        )  # fmt: skip


def _mean_image(pixels: Array) -> str:
    """What the mean of all images (n, 64) is off by: an attacker has it without any number."""
    errors = np.linalg.norm(pixels - pixels.mean(0), axis=1) / np.linalg.norm(pixels, axis=1)
    return f"mean image: {np.median(errors):.2f}"


def _describe(tries: list[Inverted]) -> str:
    """The median error, and how many labels of all are right."""
    error = float(np.median([each.error for each in tries]))
    right, count = (sum(getattr(each, name) for each in tries) for name in ("labels", "batch"))
    return f"{error:.3f}; {right} of {count}"


def _ask_for_members() -> Iterator[AttackRow]:
    pixels, labels = digits()
    images, classes = pixels[: 3 * MEMBERS], labels[: 3 * MEMBERS]
    for batch, queries in LEDGERS:
        site = LedgerOfImages(images, classes, batch, queries, LEDGER_ROUNDS)
        known = site.attack(0)
        hidden = replace(site, is_public=False).attack(0)
        private = replace(site, epsilon=EPSILON).attack(0)
        yield AttackRow(
            f"membership of images, {LEDGER_ROUNDS} rounds, B = {batch}, q = {queries}",
            "AUC, TPR at 1 % FPR: rows known / secret",
            f"{describe(known, 0.01)} / {describe(hidden, 0.01)}",
            describe(private, 0.01), _bound(),
        )  # fmt: skip


def _set_trap() -> Iterator[AttackRow]:
    pixels, labels = digits()
    noise = noise_for(EPSILON, DELTA, ROUNDS, RATE_BITS)
    plain, private = (
        [
            attack_with_trap(pixels[:TRAP_BATCH], labels[:TRAP_BATCH], TRAP_NUMBERS, seed, each)
            for seed in range(3)
        ]
        for each in (0.0, noise)
    )
    yield AttackRow(
        f"chosen parameters: one image of {TRAP_BATCH}, q = {TRAP_NUMBERS}", "image error; label",
        _describe(plain), _describe(private), _mean_image(pixels),
    )  # fmt: skip


def _read_ledger() -> Iterator[AttackRow]:
    with TemporaryDirectory() as folder, own_state(Path(folder) / "state"):
        config = configure({**TEXTS, "output-dir": folder, "run-name": "plain"})
        plain = attack_run(config)
        private = config.replace(
            run_name="private", privacy="local", privacy_epsilon=EPSILON, privacy_clip=4.0
        )
        hidden = attack_run(private)
    yield AttackRow(
        "membership from a ledger: byte GPT, 10 rounds, B = 4, q = 32", "AUC, TPR at 5 % FPR",
        describe(plain, 0.05), describe(hidden, 0.05), _bound(),
    )  # fmt: skip


def describe(members: Members, false_positives: float) -> str:
    """The area under the curve, and the share of members that few false alarms find."""
    area = area_under_curve(members.inside, members.outside)
    return f"{area:.3f}, {true_positives(members.inside, members.outside, false_positives):.2f}"


def _bound() -> str:
    return f"AUC up to {most_area(EPSILON, DELTA):.3f}"
