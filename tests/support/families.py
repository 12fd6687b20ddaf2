"""Tiny models of many architectures with random weights, for tests that go through all of them."""

import small_models
import torch
import transformers

SIZES = {"vocab_size": len(small_models.VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
         "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 3}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}

# The class of a causal language model, and its configuration.
CAUSAL = {
    "llama": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "query_pre_attn_scalar": 8}),
    "phi": ("Phi", SIZES),
    "phi3": ("Phi3", SIZES),
    "opt": ("OPT", {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "gpt-neox": ("GPTNeoX", SIZES),
    "bloom": ("Bloom", {**SIZES, "n_layer": 2, "n_head": 2}),
    "mamba": ("Mamba", {**SIZES, "state_size": 4, "expand": 2}),
}
ENCODERS = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", {**SIZES, "pad_token_id": 1}),
    "distilbert": ("DistilBert", {**SIZES, "dim": 16, "n_heads": 2, "n_layers": 2,
                                  "hidden_dim": 24}),
}  # fmt: skip


def causal_model(family):
    """A causal language model of a family, with random weights."""
    name, sizes = CAUSAL[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    return _with_random_weights(getattr(transformers, f"{name}ForCausalLM")(config))


def encoder(family):
    """An encoder without a head."""
    name, sizes = ENCODERS[family]
    torch.manual_seed(0)
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))


def encoder_decoder():
    """A T5, which reads one text and writes another."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=SIZES["vocab_size"], decoder_start_token_id=0, eos_token_id=3, **sizes
    )
    return transformers.T5ForConditionalGeneration(config)


def saved(folder, family):
    """A folder with a model of a family and a tokenizer of words."""
    if family == "t5":
        return small_models.saved(folder, encoder_decoder(), framed=True)
    if family in ENCODERS:
        return small_models.saved(folder, encoder(family), framed=True)
    return small_models.saved(folder, causal_model(family), framed=False)


def _with_random_weights(module):
    """Norms and biases that are not ones and zeros, so that leaving one out would be seen."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module.eval()
