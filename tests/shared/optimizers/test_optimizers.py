"""Every optimizer descends, can be saved, and gives the same bits anywhere."""

import math

import pytest
import torch
from optimizer_trials import LAYOUT, random_vector, threads  # noqa: F401  (a fixture)

from shared.base.errors import ConfigError, SnapshotError
from shared.base.flat import Layout
from shared.optimizers import OPTIMIZERS
from shared.optimizers.gradient import DenseGradient, ZerothOrderGradient
from shared.optimizers.mudamw import cautious_mask
from shared.randomness.streams import Key

VARIANTS = [(name, {}) for name in OPTIMIZERS.names()] + [
    ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
    ("sgd", {"weight_decay": 0.1}),
    ("adam", {"weight_decay": 0.1}),
    ("mudamw", {"weight_decay": 0.1, "cautious": True}),
]
variants = pytest.mark.parametrize(("name", "hyper"), VARIANTS, ids=str)


class ToySigns:
    """Signs from torch's generator, written into the padding too."""

    exact = True

    def add_to_(self, flat, keys, coefficients, start=0):
        for key, coefficient in zip(keys, coefficients, strict=True):
            generator = torch.Generator().manual_seed(key.round * 1000 + key.index)
            signs = torch.randint(0, 2, (start + flat.numel(),), generator=generator) * 2 - 1
            flat += signs[start:].to(flat) * coefficient


def estimate(round_):
    keys = [Key(1, round_, 0, index) for index in range(3)]
    return ZerothOrderGradient(ToySigns(), keys, [0.3, -1.7, 0.011 * round_])


def train(optimizer, flat, rounds):
    """Rounds of both kinds of gradient, the dense ones even."""
    for round_ in rounds:
        dense = DenseGradient(random_vector(round_).to(flat.device))
        optimizer.step_(flat, estimate(round_) if round_ % 2 else dense, 1e-2 / round_)
    return flat


@variants
def test_a_quadratic_is_descended(name, hyper):
    undecayed = {key: value for key, value in hyper.items() if key != "weight_decay"}
    optimizer, target = OPTIMIZERS[name](LAYOUT, **undecayed), random_vector(1)
    flat = torch.zeros(LAYOUT.size)
    for round_ in range(120):
        optimizer.step_(flat, DenseGradient(flat - target), 0.1 if name != "mudamw" else 0.3)
        if round_ == 60:
            assert (flat - target).square().sum() < 0.5 * target.square().sum()
    assert (flat - target).square().sum() < 0.1 * target.square().sum()


@variants
def test_replicas_agree_to_the_bit_at_any_number_of_threads_and_chunk_size(
    name, hyper, monkeypatch, threads
):
    flats = []
    for count, chunk in [(1, 1 << 20), (2, 1 << 20), (2, 999)]:
        monkeypatch.setattr("shared.optimizers.gradient.CHUNK", chunk)
        monkeypatch.setattr("shared.optimizers.adam.CHUNK", chunk)
        monkeypatch.setattr("shared.optimizers.newton_schulz.CHUNK", chunk)
        threads(count)
        flats.append(train(OPTIMIZERS[name](LAYOUT, **hyper), random_vector(0), range(1, 5)))
    assert torch.equal(flats[0], flats[1])
    assert torch.equal(flats[0], flats[2])


@pytest.mark.gpu
@variants
def test_a_replica_on_the_gpu_has_the_bits_of_one_on_the_cpu(name, hyper):
    flats = [
        train(OPTIMIZERS[name](LAYOUT, device, **hyper), random_vector(0).to(device), range(1, 5))
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(flats[0], flats[1].cpu())


@variants
def test_saved_and_loaded_in_the_middle_gives_the_same_bits(name, hyper):
    straight = train(OPTIMIZERS[name](LAYOUT, **hyper), random_vector(0), range(1, 7))
    first, second = (OPTIMIZERS[name](LAYOUT, **hyper) for _ in range(2))
    flat = train(first, random_vector(0), range(1, 4))
    second.load_state({key: tensor.clone() for key, tensor in first.state().items()})
    assert torch.equal(train(second, flat, range(4, 7)), straight)


@variants
def test_state_is_live_and_loading_copies(name, hyper):
    optimizer, other = (OPTIMIZERS[name](LAYOUT, **hyper) for _ in range(2))
    live = optimizer.state()
    train(optimizer, random_vector(0), [1, 2])
    assert all(tensor.any() for tensor in live.values())
    other.load_state(live)
    train(other, random_vector(0), [3])
    assert all(torch.equal(live[key], optimizer.state()[key]) for key in live)
    assert not any(torch.equal(live[key], other.state()[key]) for key in live)


@variants
def test_the_padding_stays_zero(name, hyper):
    optimizer = OPTIMIZERS[name](LAYOUT, **hyper)
    flat = train(optimizer, random_vector(0), range(1, 4))
    for vector in [flat, *optimizer.state().values()]:
        cleared = vector.clone()
        if vector.shape == flat.shape:
            LAYOUT.clear_padding_(cleared)
        assert torch.equal(vector, cleared)


@variants
def test_a_state_that_does_not_fit_is_refused_whole(name, hyper):
    optimizer = OPTIMIZERS[name](LAYOUT, **hyper)
    with pytest.raises(SnapshotError, match=r"\['other'\]"):
        optimizer.load_state({"other": torch.ones(1)})
    train(optimizer, random_vector(0), [1])
    before = {key: tensor.clone() for key, tensor in optimizer.state().items()}
    for key, tensor in before.items():
        bad = {**{k: t + 1 for k, t in before.items()}, key: tensor.double()}
        with pytest.raises(SnapshotError, match=rf"{key}.*expected, got torch.float64"):
            optimizer.load_state(bad)
        assert all(torch.equal(optimizer.state()[k], before[k]) for k in before)


def test_sgd_without_momentum_holds_nothing_and_builds_nothing():
    seen = []

    class Recorder:
        def add_to_(self, flat, scale):
            seen.append((flat.data_ptr(), scale))

    flat = random_vector(0)
    optimizer = OPTIMIZERS["sgd"](LAYOUT)
    optimizer.step_(flat, Recorder(), 0.5)
    assert seen == [(flat.data_ptr(), -0.5)]
    assert not optimizer.state()


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("sgd", {"momentum": 1.0}),
        ("sgd", {"weight_decay": -1.0}),
        ("adam", {"beta1": 1.0}),
        ("adam", {"epsilon": 0.0}),
        ("adam", {"weight_decay": -1.0}),
        ("mudamw", {"beta2": -0.1}),
        ("mudamw", {"weight_decay": math.nan}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name, hyper):
    with pytest.raises(ConfigError, match="expected, got"):
        OPTIMIZERS[name](LAYOUT, **hyper)


def test_mudamw_steps_matrices_orthogonally_and_the_rest_as_adam():
    adam, muon = OPTIMIZERS["adam"](LAYOUT), OPTIMIZERS["mudamw"](LAYOUT)
    flats = [train(optimizer, torch.zeros(LAYOUT.size), [2]) for optimizer in (adam, muon)]
    steps = [LAYOUT.views(flat) for flat in flats]
    for name in ("b", "s", "c"):
        assert torch.equal(steps[0][name], steps[1][name])
    for name in ("w", "e"):
        length = math.sqrt(max(steps[1][name].shape))
        values = torch.linalg.svdvals(steps[1][name]) / (0.2 * length * 1e-2 / 2)
        assert 0.3 < values.min() <= values.max() < 1.21
        assert 0.14 < steps[1][name].square().mean().sqrt() / (1e-2 / 2) < 0.26


def test_the_cautious_mask_drops_what_disagrees_and_rescales_the_rest():
    update = torch.tensor([1.0, -2.0, 3.0, -4.0, 1e-30])
    gradient = torch.tensor([1.0, 1.0, 0.0, -1.0, 1e-30])
    assert torch.equal(
        cautious_mask(update, gradient), update * torch.tensor([1, 0, 0, 1, 1]) * (5 / 4)
    )


def test_mudamw_refuses_a_matrix_too_large_to_sum_exactly():
    with pytest.raises(ConfigError, match="below 2147483648"):
        OPTIMIZERS["mudamw"](Layout.of([("w", (2**16, 2**15))]))
