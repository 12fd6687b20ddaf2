"""A scope trains what it says and nothing else, in every mode, and the model loads afterwards."""

import pytest
import torch
from fleet import config, federate, of_mode
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from shared.base.errors import ConfigError, DataError
from shared.models.adapters import adapt_
from shared.models.load import load_model
from shared.models.model import LanguageModel
from shared.models.tokenizers import ByteTokenizer
from shared.training.oracle import Oracle
from shared.training.scopes import biases, head, last
from shared.training.start import load_start

PATTERN = r"regex:h\.1\.attn"
SCOPES = ["reduced", "lora", "bias", "last:1", "last:1:bias", PATTERN]
every_scope = pytest.mark.parametrize("scope", SCOPES)


def names(oracle):
    return {span.name for span in oracle.replica.model.layout.tensors}


def test_reduced_is_the_last_blocks_mlp_its_norm_and_the_head(tmp_path):
    chosen = names(Oracle.of(config(tmp_path, scope="reduced")))
    block = "transformer.h.1."
    assert chosen == {block + "ln_2.weight", block + "ln_2.bias", block + "mlp.c_fc.weight",
                     block + "mlp.c_fc.bias", block + "mlp.c_proj.weight",
                     block + "mlp.c_proj.bias", "transformer.wte.weight"}  # fmt: skip


def test_the_scope_bias_is_biases_and_norms_by_any_name_and_a_classifiers_output(tmp_path):
    chosen = names(Oracle.of(config(tmp_path, scope="bias")))
    whole = names(Oracle.of(config(tmp_path)))
    assert chosen == {name for name in whole if name.endswith("bias") or ".ln_" in name}
    tiny = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    tiny |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(**tiny))
    block = "model.layers.0."
    assert biases(llama) == {block + "input_layernorm.weight",
                             block + "post_attention_layernorm.weight",
                             "model.norm.weight"}  # fmt: skip
    chosen = biases(BertForSequenceClassification(BertConfig(**tiny)))
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.bias"} < chosen
    assert {"bert.embeddings.LayerNorm.weight"} < chosen
    assert "bert.pooler.dense.weight" not in chosen
    with pytest.raises(ConfigError, match="neither biases nor norms"):
        biases(nn.Linear(2, 2, bias=False))


TINY = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 3, "num_attention_heads": 2}  # fmt: skip


def test_the_last_blocks_are_trained_with_what_follows_them_but_no_output_matrix(tmp_path):
    chosen = names(Oracle.of(config(tmp_path, scope="last:1")))
    whole = names(Oracle.of(config(tmp_path)))
    assert chosen == {name for name in whole if ".h.1." in name or ".ln_f." in name}
    for tied in (True, False):
        llama = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=tied))
        named = {name for name, _ in llama.named_parameters()}
        after = {n for n in named if n.startswith(("model.layers.1", "model.layers.2"))}
        assert last(llama, 2, few=False) == after | {"model.norm.weight"}
        assert last(llama, 2, few=True) == {n for n in after if "norm" in n} | {"model.norm.weight"}
    bert = BertForSequenceClassification(BertConfig(**TINY))
    named = {name for name, _ in bert.named_parameters()}
    after = {n for n in named if ".layer.2." in n or "pooler" in n or "classifier" in n}
    assert last(bert, 1, few=False) == after
    few = {n for n in after if n.endswith("bias") or "LayerNorm" in n} | {"classifier.weight"}
    assert last(bert, 1, few=True) == few
    assert last(bert, 3, few=False) == {n for n in named if "embeddings" not in n}


@pytest.mark.parametrize("scope", ["last:0", "last:3", "last:99", "last:99:bias"])
def test_a_number_of_blocks_that_the_model_has_not_is_refused_with_its_number(scope, tmp_path):
    with pytest.raises(ConfigError, match="from 1 to 2 blocks expected, as many as LightGPT2"):
        Oracle.of(config(tmp_path, scope=scope))


@pytest.mark.parametrize(
    "scope", ["last:", "last:two", "last:-1", "last:1:head", "last:1:", "last:²"]
)
def test_another_form_of_last_is_refused_with_what_is_expected(scope, tmp_path):
    with pytest.raises(ConfigError, match=r"last:<blocks> or last:<blocks>:bias expected, got 'la"):
        config(tmp_path, scope=scope)


def test_a_module_without_blocks_has_no_last_ones():
    with pytest.raises(ConfigError, match="a list of equal blocks expected in Linear"):
        last(nn.Linear(2, 2), 1, few=False)


@pytest.mark.parametrize("scope", ["last:1", "last:1:bias"])
def test_the_last_blocks_begin_at_the_cut(scope, tmp_path):
    oracle = Oracle.of(config(tmp_path, scope=scope))
    blocks = torch.arange(32).view(2, 16)
    whole = Oracle.of(config(tmp_path, scope=scope, keep_memory=0)).loss(blocks)
    assert oracle.loss(blocks) == pytest.approx(whole, rel=1e-5)
    assert oracle.kept._is_possible


def test_lora_may_be_in_the_last_blocks_alone(tmp_path):
    whole = names(Oracle.of(config(tmp_path, scope="lora", lora_rank=1)))
    oracle = Oracle.of(config(tmp_path, scope="lora", lora_rank=1, lora_blocks=1))
    assert names(oracle) == {name for name in whole if ".h.1." in name} != set()
    blocks = torch.arange(32).view(2, 16)
    plain = Oracle.of(config(tmp_path)).loss(blocks)
    assert oracle.loss(blocks) == pytest.approx(plain, rel=1e-5)
    assert oracle.kept._is_possible
    with pytest.raises(ConfigError, match="lora-blocks: at most 2 expected, as many as GPT2LM"):
        Oracle.of(config(tmp_path, scope="lora", lora_blocks=3))
    with pytest.raises(ConfigError, match="lora-blocks = 1 needs scope lora, got 'full'"):
        config(tmp_path, lora_blocks=1)


def test_lora_trains_adapters_of_the_rank_and_the_targets(tmp_path):
    oracle = Oracle.of(config(tmp_path, scope="lora", lora_rank=2, lora_targets="c_fc, c_attn"))
    assert all(".lora_" in name for name in names(oracle))
    assert {name.split(".")[-4] for name in names(oracle)} == {"c_fc", "c_attn"}
    assert {min(p.shape) for p in oracle.replica.model.layout.tensors} == {2}


def test_an_adapted_model_starts_as_the_model_itself(tmp_path):
    blocks = torch.arange(32).view(2, 16)
    plain, adapted = (Oracle.of(config(tmp_path, scope=s)) for s in ("full", "lora"))
    assert adapted.loss(blocks) == pytest.approx(plain.loss(blocks), rel=1e-6)
    assert adapted.base == Oracle.of(config(tmp_path, scope="lora")).base
    assert adapted.base != Oracle.of(config(tmp_path, scope="lora", seed=2)).base


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"scope lora: .*none_such"):
        Oracle.of(config(tmp_path, scope="lora", lora_targets="none_such"))


@every_scope
@pytest.mark.parametrize("mode", ["zo", "fo", "calibrate", "instruct reuse", "fedavg"])
def test_a_scope_works_in_every_mode_and_leaves_the_rest_alone(scope, mode, tmp_path):
    rate = 0.02 if mode == "zo" and scope != "reduced" else 0.001
    more = {"learning_rate": rate, "eps": 1e-2 if scope == "lora" else 1e-3, "num_rounds": 3}
    wide = {"num_clients": 2, "queries": 4}
    if mode == "fedavg":
        more |= {"learning_rate": 0.005, "local_steps": 8}
        c = config(tmp_path, mode=mode, scope=scope, **more, **wide)
    else:
        c = of_mode(tmp_path, mode, scope=scope, **more, **wide)
    run = federate(c)
    assert run.losses[-1] < run.losses[0]
    assert not run.refusals


@every_scope
def test_the_saved_model_loads_in_transformers_and_computes_the_same(scope, tmp_path):
    oracle = Oracle.of(config(tmp_path, scope=scope))
    flat, blocks = oracle.replica.model.flat, torch.arange(32).view(2, 16)
    flat += 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1))
    oracle.replica.model.layout.clear_padding_(flat)
    expected = oracle.loss(blocks)
    oracle.language_model.save(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loss = loaded(blocks, labels=blocks).loss
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert oracle.loss(blocks) == expected  # saving touched nothing


def test_a_run_starts_from_the_result_of_another(tmp_path):
    first = Oracle.of(config(tmp_path))
    first.replica.model.flat[:1000] += 0.1
    first.language_model.save(tmp_path / "first" / "model")
    second = Oracle.of(config(tmp_path, init_from=str(tmp_path / "first")))
    assert torch.equal(second.replica.model.flat, first.replica.model.flat)
    assert not torch.equal(
        second.replica.model.flat, Oracle.of(config(tmp_path)).replica.model.flat
    )
    adapted = Oracle.of(config(tmp_path, init_from=str(tmp_path / "first"), scope="lora"))
    blocks = torch.arange(32).view(2, 16)
    assert adapted.loss(blocks) == pytest.approx(second.loss(blocks), rel=1e-6)


def test_a_run_that_left_no_model_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match="holds no model; a run with save-model = true"):
        load_start(config(tmp_path, init_from=str(tmp_path)))
    assert load_model("byte-gpt", 1).name == "byte-gpt"


def test_a_module_without_an_output_layer_has_no_head():
    with pytest.raises(ConfigError, match=r"scope head: a PreTrainedModel.*got Linear"):
        head(nn.Linear(2, 2))


def test_adapters_of_a_module_that_is_not_of_transformers_are_refused(tmp_path):
    model = LanguageModel("mine", nn.Linear(2, 2), ByteTokenizer())
    with pytest.raises(ConfigError, match="scope lora"):
        adapt_(model, config(tmp_path, scope="lora").model, 1)
