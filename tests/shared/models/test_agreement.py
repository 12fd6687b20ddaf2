"""A model, its tokenizer and its files agree, or it is refused by the numbers."""

import json

import numpy as np
import pytest
import small_models
import torch
from tokenizers import processors

from shared.base.errors import DataError
from shared.data.documents import Documents
from shared.data.examples import cut_blocks
from shared.generation.prompt_frame import prompt_frame
from shared.models.hub import build_without_weights
from shared.models.load import load_model
from shared.models.tokenizers import ByteTokenizer, HubTokenizer
from shared.tasks.verbaliser import Verbaliser


@pytest.fixture
def bert(tmp_path):
    return tmp_path / "bert", small_models.encoder(tmp_path / "bert")


@pytest.fixture
def llama(tmp_path):
    return tmp_path / "llama", small_models.causal(tmp_path / "llama")


def with_start():
    """The tokenizer of words, which puts [CLS] as the begin-of-text token before a text."""
    tokenizer = small_models.tokenizer(framed=False)
    tokenizer.bos_token = "[CLS]"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_a_folder_without_a_tokenizer_is_refused(bert):
    folder, name = bert
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match="tokenizer's files expected beside its weights"):
        load_model(name, 1, ("a", "b"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path, llama):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    small = LlamaForCausalLM(LlamaConfig(vocab_size=10, **shape))
    with pytest.raises(DataError, match=r"6 tokens without an embedding.* 10 embeddings"):
        load_model(small_models.saved(tmp_path / "small", small, framed=False), 1)
    large = LlamaForCausalLM(LlamaConfig(vocab_size=500, **shape))
    with pytest.raises(DataError, match="knows 16 tokens, and the model has 500 embeddings"):
        load_model(small_models.saved(tmp_path / "large", large, framed=False), 1)
    padded = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))
    assert load_model(small_models.saved(tmp_path / "padded", padded, framed=False), 1)


def test_special_tokens_that_no_text_gets_need_no_embedding(llama):
    folder, name = llama
    tokenizer = small_models.tokenizer(framed=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert load_model(name, 1).tokenizer.size == len(small_models.VOCABULARY) + 1


@pytest.mark.parametrize("harm", ["half", "header"])
def test_a_file_cut_short_is_named_in_a_sentence(llama, harm):
    folder, name = llama
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if harm == "half" else whole[:5])
    with pytest.raises(DataError, match=r"cannot be loaded: .* whole; copy it again"):
        load_model(name, 1)


def test_weights_of_another_shape_are_refused(llama):
    folder, name = llama
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(name, 1)


def test_the_longest_text_is_that_of_the_position_embeddings(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    module = RobertaModel(
        RobertaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=24, max_position_embeddings=34, pad_token_id=0)
    )  # fmt: skip
    name = small_models.saved(tmp_path / "roberta", module, framed=True)
    model = load_model(name, 1, ("a", "b"))
    assert model.positions == 33  # positions count from that of the padding on
    with torch.inference_mode():
        assert model.module(torch.full((1, model.positions), 5)).logits.shape == (1, 2)
        with pytest.raises((IndexError, RuntimeError)):
            model.module(torch.full((1, model.positions + 1), 5))


def test_a_head_on_a_causal_model_finds_the_end_of_a_text(tmp_path):
    """The configuration names another padding than the tokenizer, which fills the rows."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    module = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=7,
                   num_labels=2)
    ).eval()  # fmt: skip
    model = load_model(small_models.saved(tmp_path / "gpt2", module, framed=False), 1, ("a", "b"))
    pad = model.tokenizer.pad
    text = torch.tensor([[4, 5, 6]])
    padded = torch.cat([text, torch.full((1, 4), pad)], 1)
    with torch.inference_mode():
        alone = model.module(text).logits
        torch.testing.assert_close(
            model.module(padded, attention_mask=(padded != pad).long()).logits, alone
        )


def test_a_head_that_needs_an_end_of_text_is_refused_without_one(tmp_path):
    from transformers import T5Config, T5ForSequenceClassification

    module = T5ForSequenceClassification(
        T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
                 decoder_start_token_id=0, eos_token_id=3, num_labels=2)
    )  # fmt: skip
    name = small_models.saved(tmp_path / "t5", module, framed=False)
    with pytest.raises(DataError, match="needs one end-of-text token 3 in each text"):
        load_model(name, 1, ("a", "b"))


# --- the token before a text


def test_a_prompt_begins_as_the_model_expects():
    tokenizer = HubTokenizer(with_start(), 3)
    begin = tokenizer.inner.bos_token_id
    frame = prompt_frame(tokenizer, "the film {text} it was", "text")
    verbaliser = Verbaliser.of(tokenizer, frame, ("good", "bad"))
    tokens = verbaliser.encode("great plot", 12)
    assert tokens.tolist() == tokenizer.inner("the film great plot it was")["input_ids"]
    assert tokens[0] == begin
    assert verbaliser.encode("a a a a a a a a", 7)[0] == begin
    assert len(verbaliser.encode("a a a a a a a a", 7)) == 7


def test_every_block_begins_as_the_model_expects():
    tokenizer = HubTokenizer(with_start(), 3)
    blocks = cut_blocks(Documents(["the film was good and it was"], ["g"]), tokenizer, 5)
    assert blocks.tokens.shape == (2, 5)
    assert set(blocks.tokens[:, 0].tolist()) == {tokenizer.inner.bos_token_id}
    assert np.array_equal(blocks.tokens[:, 1:].reshape(-1), [*tokenizer.encode(
        "the film was good and it was"), 3])  # fmt: skip


@pytest.mark.parametrize("framed", [True, False])
def test_nothing_is_put_before_where_a_tokenizer_puts_nothing(framed):
    assert len(HubTokenizer(small_models.tokenizer(framed), 3).start) == 0
    assert len(ByteTokenizer().start) == 0


# --- shapes alone


def test_shapes_are_built_without_weights_on_the_device_meta(llama):
    module = build_without_weights(llama[1], llama[1])
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
