"""Passes that begin at a cut give the losses of whole passes, and compute each example once."""

import logging

import numpy as np
import pytest
import torch
from small_config import small_config as config
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)

from client.site.merged_clients import measure_merged
from client.site.site import LocalSite
from shared.estimation.two_point import two_point
from shared.features import cut, kept_features
from shared.protocol.messages import Request
from shared.protocol.site_id import SiteId
from shared.randomness.streams import SHARED_SLOT, direction_keys
from shared.training.oracle import Oracle, evaluate
from shared.training.site_data import SiteData

LAST = {
    "encoder": r"regex:layer\.1\.|classifier",
    "llama": r"regex:layers\.1\.|model\.norm",
    "gpt2": r"regex:h\.1\.|ln_f",
}
KINDS = [*LAST]


def settings(folders, kind, **more):
    if kind == "gpt2":
        return {"scope": LAST[kind], "max_samples": 8, **more}
    model = folders["head" if kind == "encoder" else "words"]
    return {**CLASSES, "model": model, "scope": LAST[kind], **more}


@pytest.fixture(params=KINDS)
def pair(request, folders, tmp_path):
    """An oracle that keeps activations, one that does not, and rows of both."""
    chosen = settings(folders, request.param)
    kept = Oracle.of(config(tmp_path, "kept", **chosen))
    plain = Oracle.of(config(tmp_path, "plain", keep_memory=0, **chosen))
    return kept, plain, rows_of(kept, config(tmp_path, **chosen))


def rows_of(oracle, chosen, count=8):
    examples = SiteData.of(chosen, oracle.language_model).shard(0, 1).queries
    return torch.from_numpy(examples.batch(np.arange(count)))


def first_block(oracle):
    for name in ("bert.encoder.layer", "model.layers", "transformer.h"):
        try:
            return oracle.language_model.module.get_submodule(name)[0]
        except AttributeError:
            continue
    raise AssertionError("no blocks")


def counted(oracle):
    """The number of sequences that each pass through the first block's attention has."""
    block, sizes = first_block(oracle), []
    attention = next(part for name, part in block.named_children() if "att" in name)
    attention.register_forward_pre_hook(
        lambda _, args, named: sizes.append(len(args[0] if args else named["hidden_states"])),
        with_kwargs=True,
    )
    return sizes


def close(ours, plain):
    return torch.allclose(
        torch.as_tensor(ours).double(), torch.as_tensor(plain).double(), rtol=1e-5, atol=1e-6
    )


# --- the numbers of whole passes


def test_losses_are_those_of_whole_passes(pair):
    kept, plain, rows = pair
    for some in (rows, rows[:1], rows[3:7], rows[[2, 2, 5, 2]], rows.flip(0)):
        assert close(kept.loss(some), plain.loss(some))
        assert close(kept.losses(some), plain.losses(some))
        assert close(kept.outcome(some).total, plain.outcome(some).total)
    assert kept.kept._is_possible
    assert close(evaluate(kept, rows).total, evaluate(plain, rows).total)


def test_each_example_s_own_loss_comes_back_in_order(pair):
    kept, plain, rows = pair
    order = torch.tensor([5, 1, 1, 7, 0])
    assert close(kept.losses(rows)[order], kept.losses(rows[order]))
    assert close(plain.losses(rows[order]), kept.losses(rows[order]))


def test_gradients_are_those_of_whole_passes(pair):
    kept, plain, rows = pair
    kept.loss(rows)  # kept while no gradient is taken, then used for one
    (loss, ours), (other, theirs) = kept.gradient(rows), plain.gradient(rows)
    assert close(loss, other)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert theirs.abs().max() > 1e-4


def test_differences_at_perturbed_points_are_those_of_whole_passes(pair):
    rows, keys = pair[2], direction_keys(1, 1, SHARED_SLOT, 0, 4)
    ours, theirs = (
        two_point(lambda _, o=oracle: o.loss(rows), oracle.perturber, keys, 0.05)
        for oracle in pair[:2]
    )
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(ours - theirs).max() < 1e-5


def test_parameters_and_methods_are_as_they_were(pair):
    kept, _, rows = pair
    module = kept.language_model.module
    before = [parameter.clone() for parameter in module.parameters()]
    kept.loss(rows)
    with kept.frozen.reuse():
        kept.loss(rows)
    assert all(map(torch.equal, module.parameters(), before))
    assert not [name for name, part in module.named_modules() if "forward" in vars(part)]


def test_losses_follow_the_trained_parameters(pair):
    kept, plain, rows = pair
    before = kept.loss(rows)
    for oracle in (kept, plain):
        oracle.replica.model.flat.mul_(1.1)
    assert kept.loss(rows) != before
    assert close(kept.loss(rows), plain.loss(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_clients_measure_what_they_measure_on_whole_passes(kind, folders, tmp_path):
    measured = []
    for memory in (512, 0):
        chosen = config(tmp_path, keep_memory=memory, **settings(folders, kind))
        oracle = Oracle.of(chosen)
        data = SiteData.of(chosen, oracle.language_model)
        sites = [
            LocalSite(SiteId(n + 1, str(n)), data.shard(n, 2).queries, chosen) for n in range(2)
        ]
        request = Request(1, 0.1, oracle.replica.digest(), bytes(16), bytes(16))
        measured.append([one.differences for one in measure_merged(oracle, sites, request)])
    assert np.abs(np.array(measured[0]) - np.array(measured[1])).max() < 1e-6


@pytest.mark.parametrize("scope", [LAST["gpt2"]])
def test_batched_queries_begin_at_the_cut_too(scope, tmp_path):
    losses = []
    for memory in (512, 0):
        chosen = config(tmp_path, keep_memory=memory, scope=scope, max_samples=8)
        oracle = Oracle.of(chosen)
        rows = rows_of(oracle, chosen)
        passes = counted(oracle)
        keys = direction_keys(1, 1, SHARED_SLOT, 0, 3)
        losses.append(oracle.parallel.losses(keys, 1e-2, torch.stack([rows[:4]] * 3)))
        oracle.parallel.losses(keys, 1e-2, torch.stack([rows[:4]] * 3))
        assert (24 in passes) == (memory == 0)  # 3 queries, 2 signs, 4 examples
    assert close(*losses)


# --- once per example


def test_the_frozen_blocks_run_once_for_each_example(pair):
    kept, _, rows = pair
    kept.loss(rows[:2])  # tried with and without
    sizes = counted(kept)
    keys = direction_keys(1, 1, SHARED_SLOT, 0, 3)
    with kept.frozen.reuse():
        two_point(lambda _: kept.loss(rows), kept.perturber, keys, 0.05)
    evaluate(kept, rows)
    distinct = len({tuple(row) for row in kept.kept._tokens(rows).tolist()})
    first = len({tuple(row) for row in kept.kept._tokens(rows[:2]).tolist()})
    assert sum(sizes) == distinct - first


def test_a_restarted_process_computes_none(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    chosen = config(tmp_path, keep_disk=64, **settings(folders, "llama"))
    first = Oracle.of(chosen)
    rows = rows_of(first, chosen)
    losses = first.losses(rows)
    second = Oracle.of(chosen)
    second.loss(rows[:1])
    sizes = counted(second)
    assert torch.equal(second.losses(rows), losses)
    assert sizes == []


def test_examples_for_which_there_is_no_room_are_computed_every_time(pair):
    kept, plain, rows = pair
    kept.loss(rows[:1])
    kept.kept._store.memory_bytes = kept.kept._store.memory_used
    sizes = counted(kept)
    evaluate(kept, rows)
    once = sum(sizes)
    assert close(kept.losses(rows.flip(0)), plain.losses(rows.flip(0)))
    assert sum(sizes) > once


def test_bfloat16_keeps_half_the_bytes_and_the_same_numbers_each_time(folders, tmp_path):
    chosen = settings(folders, "llama")
    kept = Oracle.of(config(tmp_path, keep_dtype="bfloat16", **chosen))
    plain = Oracle.of(config(tmp_path, "plain", keep_memory=0, **chosen))
    rows = rows_of(kept, config(tmp_path, **chosen))
    first = kept.losses(rows)
    kept.loss(rows[:1])  # what was assembled last is another batch now
    assert torch.equal(kept.losses(rows), first)
    assert torch.allclose(first, plain.losses(rows), rtol=2e-2)
    assert not torch.equal(first, plain.losses(rows))


def test_a_whole_model_in_bfloat16_is_cut_too(folders, tmp_path):
    chosen = settings(folders, "encoder", dtype="bfloat16")
    kept = Oracle.of(config(tmp_path, **chosen))
    plain = Oracle.of(config(tmp_path, "plain", keep_memory=0, **chosen))
    rows = rows_of(kept, config(tmp_path, **chosen))
    assert torch.allclose(kept.losses(rows), plain.losses(rows), rtol=3e-2)
    assert kept.kept._is_possible


def test_a_head_alone_is_cut_after_the_last_block(folders, tmp_path):
    chosen = settings(folders, "encoder", scope="head")
    kept = Oracle.of(config(tmp_path, **chosen))
    plain = Oracle.of(config(tmp_path, "plain", keep_memory=0, **chosen))
    rows = rows_of(kept, config(tmp_path, **chosen))
    assert close(kept.losses(rows), plain.losses(rows))
    assert len(kept.kept._prefix.blocks) == kept.kept._prefix.total == 2


# --- never stale


def name_of(oracle, rows):
    oracle.loss(rows)
    return oracle.kept._store.name


def test_the_same_cut_of_the_same_model_has_the_same_name_whatever_is_trained_behind_it(
    folders, tmp_path
):
    names = set()
    for scope in (LAST["llama"], r"regex:layers\.1\..*norm"):
        chosen = config(tmp_path, **settings(folders, "llama", scope=scope))
        oracle = Oracle.of(chosen)
        rows = rows_of(oracle, chosen)
        oracle.loss(rows)
        oracle.replica.model.flat.add_(1e-3)
        names |= {oracle.kept._store.name, oracle.kept._open_store().name}
    assert len(names) == 1


def test_another_frozen_part_cut_or_tokenizer_has_another_name(folders, tmp_path):
    names = []
    for change in ("none", "embedding", "block", "tokenizer", "cut"):
        scope = r"regex:model\.norm" if change == "cut" else LAST["llama"]
        chosen = config(tmp_path, **settings(folders, "llama", scope=scope))
        oracle = Oracle.of(chosen)
        rows = rows_of(oracle, chosen)
        if change == "embedding":
            oracle.language_model.module.model.embed_tokens.weight.data[3, 3] += 1e-3
        if change == "block":
            oracle.language_model.module.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
        if change == "tokenizer":
            oracle.kept.tokenizer = "another"
        names.append(name_of(oracle, rows))
    assert len(set(names)) == len(names)


# --- models that cannot be cut


@pytest.mark.parametrize("scope", ["full", r"regex:embed|layers\.1"])
def test_what_is_trained_before_the_blocks_leaves_no_cut(folders, tmp_path, caplog, scope):
    caplog.set_level(logging.INFO)
    chosen = settings(folders, "llama", scope=scope)
    kept = Oracle.of(config(tmp_path, **chosen))
    rows = rows_of(kept, config(tmp_path, **chosen))
    for _ in range(3):
        kept.loss(rows)
    assert not kept.kept._is_possible
    assert caplog.text.count("are not kept") == (scope != "full")


def test_a_model_that_looks_at_its_blocks_otherwise_goes_on_without(folders, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    chosen = settings(folders, "llama")
    kept = Oracle.of(config(tmp_path, **chosen))
    plain = Oracle.of(config(tmp_path, "plain", keep_memory=0, **chosen))
    rows = rows_of(kept, config(tmp_path, **chosen))
    for oracle in (kept, plain):  # the last block also sees what the first was given
        first, last = oracle.language_model.module.model.layers
        seen, own = [], last.forward
        first.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        first.mlp.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))

        def forward(hidden, *args, own=own, seen=seen, **named):
            return own(hidden + seen[-1], *args, **named)

        last.forward = forward
    assert torch.equal(kept.losses(rows), plain.losses(rows))
    assert not kept.kept._is_possible
    assert caplog.text.count("are not kept") == 1


def test_progress_is_said_if_it_takes_long(folders, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kept_features, "NOTICE_S", 0.0)
    monkeypatch.setattr(cut, "PASS_TOKENS", {"cpu": 1})
    chosen = settings(folders, "llama")
    kept = Oracle.of(config(tmp_path, **chosen))
    evaluate(kept, rows_of(kept, config(tmp_path, **chosen)))
    lines = [line for line in caplog.text.splitlines() if "activations of" in line]
    shares = [float(line.split("rounds: ")[1].split(" %")[0]) for line in lines]
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert all(line.endswith("s left") for line in lines)
