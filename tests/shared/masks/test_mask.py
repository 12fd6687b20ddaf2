"""A fixed mask is chosen by squared gradients, carried as text, and all else keeps its bits."""

import pytest
import torch
from fleet import config, federate, of_mode
from transformers import AutoModelForCausalLM

from shared.base.errors import ConfigError
from shared.masks.mask import MOST_BYTES, PREFIX, Mask, check_size, fingerprint
from shared.masks.masked_module import names_of_values, shapes_of
from shared.models.load import load_model
from shared.training.oracle import EVALUATION_BATCH, Oracle
from shared.training.server_choices import choose_mask, resolve_choices

SHAPES = {"a": (3, 4), "b": (5,)}


def masked(folder, scope="mask:0.1", **changes):
    return resolve_choices(config(folder, scope=scope, **changes))


def whole(oracle):
    """The model's parameters under their own names."""
    state = oracle.language_model.state
    module = oracle.language_model.module
    return {k: v.clone() for k, v in (state(module) if state else module.state_dict()).items()}


def test_the_largest_scores_are_chosen_and_the_text_says_which():
    scores = {"a": torch.zeros(3, 4), "b": torch.arange(5.0)}
    scores["a"][1, 2] = 9
    mask = Mask.of_largest(scores, 3 / 17)
    assert {k: v.tolist() for k, v in mask.addresses.items()} == {"a": [6], "b": [3, 4]}
    again = Mask.decode(mask.encode(SHAPES), SHAPES)
    assert {k: v.tolist() for k, v in again.addresses.items()} == {"a": [6], "b": [3, 4]}
    assert Mask.of_largest(scores, 1e-9).size == 1
    assert Mask.of_largest(scores, 1.0).size == 17


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("auto", "becomes addresses before the settings go to the sites"),
        ("mask9:x", "a text that begins with 'mask1:'"),
        (f"{PREFIX}{fingerprint(SHAPES)}:%%", "a text as dandelion computes it"),
        (f"{PREFIX}{fingerprint(SHAPES)}:eJw=", "the bits of 17 addresses expected"),
        (Mask({"a": torch.tensor([1])}).encode({"a": (3, 4)}), "one of another model"),
        (Mask({}).encode(SHAPES), "at least one address expected"),
        (
            Mask({"c": torch.arange(99)}).encode({"c": (99,)}).replace(
                fingerprint({"c": (99,)}), fingerprint(SHAPES)
            ),
            "the bits of 17 addresses expected",
        ),
    ],
)  # fmt: skip
def test_another_text_is_refused_with_what_is_expected(text, what):
    with pytest.raises(ConfigError, match=what):
        Mask.decode(text, SHAPES)


@pytest.mark.parametrize(
    "scope",
    ["mask:0", "mask:", "mask:1.1", "mask:-0.1", "mask:nan", "mask:1e-3", "mask:²",
     "mask:0.1:lora", "mask:0.1:words", "mask:0.1:mask:0.1", "mask:0.1:last:x", "mask:0.1:none"],
)  # fmt: skip
def test_another_share_or_scope_is_refused(scope, tmp_path):
    with pytest.raises(ConfigError):
        config(tmp_path, scope=scope)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"scope": "mask:0.1", "parallel_queries": 2}, "no mask is batched"),
        ({"mask": "mask1:x"}, "needs scope mask:<share>, got 'full'"),
    ],
)
def test_what_cannot_work_with_a_mask_is_refused_by_name(changes, what, tmp_path):
    with pytest.raises(ConfigError, match=what):
        config(tmp_path, **changes)


def test_a_text_that_would_be_long_is_refused_before_a_gradient_is_computed():
    check_size(0.1, 10_000_000)
    with pytest.raises(ConfigError, match=r"at most 4\.2 MB expected: take a smaller share"):
        check_size(0.1, 135_000_000)
    check_size(1.0, 10**12)
    scores = {"a": torch.rand(400, 500, generator=torch.Generator().manual_seed(1))}
    text = Mask.of_largest(scores, 0.1).encode({"a": (400, 500)})
    assert len(text) < 1.3 * 200_000 * 0.469 / 8 * 4 / 3 < MOST_BYTES  # deflate is near the entropy


def test_the_chosen_addresses_have_the_largest_squared_gradients(tmp_path):
    c = config(tmp_path, scope="mask:0.02", eval_blocks=2 * EVALUATION_BATCH)
    oracle = Oracle.of(config(tmp_path))
    from shared.training.corpus import Corpus, load_evaluation

    rows = load_evaluation(Corpus.of(c, oracle.language_model), oracle.language_model)
    squares = sum(oracle.gradient(part)[1].square() for part in rows.split(EVALUATION_BATCH))
    mask = Mask.decode(choose_mask(c), shapes_of(oracle.language_model.module))
    views = oracle.replica.model.layout.views(squares)
    inside = torch.cat([views[name].flatten()[own] for name, own in mask.addresses.items()])
    count = oracle.replica.model.layout.parameters
    assert mask.size == round(0.02 * count)
    assert float(inside.min()) == float(squares.topk(mask.size).values.min())


def test_a_mask_of_a_part_has_addresses_there_alone(tmp_path):
    c = masked(tmp_path, "mask:0.1:last:1")
    oracle, part = Oracle.of(c), Oracle.of(config(tmp_path, scope="last:1"))
    names = {span.name for span in oracle.replica.model.layout.tensors}
    assert names == names_of_values(oracle.language_model.module)
    assert all(".h.1." in name or ".ln_f." in name for name in names)
    count = oracle.replica.model.layout.parameters
    assert count == round(0.1 * part.replica.model.layout.parameters)
    blocks = torch.arange(32).view(2, 16)
    assert oracle.loss(blocks) == pytest.approx(Oracle.of(config(tmp_path)).loss(blocks), rel=1e-6)
    assert oracle.kept._is_possible  # the blocks before are kept


@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "fedavg"])
def test_only_the_masks_numbers_move_and_the_loss_falls(mode, tmp_path):
    more = {"learning_rate": 0.02, "num_rounds": 3, "num_clients": 2, "queries": 8}
    more |= {"local_steps": 8, "learning_rate": 0.005} if mode == "fedavg" else {}
    c = resolve_choices(of_mode(tmp_path, mode, scope="mask:0.1", **more))
    run = federate(c)
    assert run.losses[-1] < run.losses[0]
    assert not run.refusals
    oracle = Oracle.of(c)
    before = whole(oracle)
    oracle.replica.model.flat.copy_(run.flat)
    after = whole(oracle)
    mask = Mask.decode(c.model.mask, shapes_of(load_model("byte-gpt", 1).module))
    for name, addresses in mask.addresses.items():
        moved = (before[name] != after[name]).flatten()
        assert moved.any()
        assert not moved.index_fill(0, addresses, False).any()
    other = {name for name in before if not torch.equal(before[name], after[name])}
    assert other - {"lm_head.weight"} == set(mask.addresses)  # tied to the embedding


def test_the_saved_model_loads_in_transformers_and_computes_the_same(tmp_path):
    oracle, blocks = Oracle.of(masked(tmp_path)), torch.arange(32).view(2, 16)
    flat = oracle.replica.model.flat
    flat += 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    oracle.replica.model.layout.clear_padding_(flat)
    expected = oracle.loss(blocks)
    oracle.language_model.save(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert float(loaded(blocks, labels=blocks).loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert not [name for name in loaded.state_dict() if "parametrizations" in name]


def test_a_run_and_its_resumption_have_the_digest_of_the_whole_run(tmp_path):
    c = masked(tmp_path, num_rounds=4, num_clients=2)
    once = federate(c)
    federate(c.replace(num_rounds=2, run_name="parts"))
    again = c.replace(resume=str(tmp_path / "parts"), run_name="parts")
    assert federate(resolve_choices(again)).digest == once.digest


def test_replay_gives_the_bits_of_the_run(tmp_path):
    from dandelion.api.ledgers import ledger_of, verify_ledger

    c = masked(tmp_path, num_rounds=3, num_clients=2)
    run = federate(c)
    with ledger_of(run.folder) as ledger:
        assert verify_ledger(ledger).digest == run.digest


@pytest.mark.parametrize("changes", [{"merge_clients": True}, {"staleness": 1}])
def test_merged_clients_and_stale_replies_work(changes, tmp_path):
    c = masked(tmp_path, num_rounds=3, num_clients=2, **changes)
    run = federate(c)
    assert run.losses[-1] != run.losses[0]
    assert not run.refusals


def test_directions_are_of_the_masks_numbers(tmp_path):
    """A perturbed point differs from θ at every address of the mask, and the loss sees it."""
    from shared.randomness.streams import probe_keys

    oracle = Oracle.of(masked(tmp_path))
    blocks, (key,) = torch.arange(32).view(2, 16), probe_keys(1, 1, 0)
    start = oracle.loss(blocks)
    with oracle.perturber.at(key, 0.05):
        inside = oracle.loss(blocks)
    flat, direction = oracle.replica.model.flat, torch.zeros_like(oracle.replica.model.flat)
    oracle.replica.directions.add_to_(direction, [key], [0.05])
    flat += direction
    assert oracle.loss(blocks) == pytest.approx(inside, rel=1e-6)
    assert inside != start


def test_a_mask_of_another_model_is_refused(tmp_path):
    text = Mask({"a": torch.tensor([1])}).encode({"a": (3, 4)})
    with pytest.raises(ConfigError, match=r"124864 parameters .* expected, got one of another mo"):
        Oracle.of(config(tmp_path, scope="mask:0.1", mask=text))


def test_a_mask_is_in_the_digest_of_the_untrained_model(tmp_path):
    one, other = masked(tmp_path, "mask:0.1"), masked(tmp_path, "mask:0.11")
    assert Oracle.of(one).base == Oracle.of(one).base != Oracle.of(other).base
