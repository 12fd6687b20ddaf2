"""Tiny chat models of several families with random weights, and a tokenizer with a template."""

import torch
from small_models import VOCABULARY, tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}"
    "[CLS] {{ m['role'] }} {{ m['content'] | trim }} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
SHAPE = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 24,
         "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
         "initializer_range": 0.3, "pad_token_id": None}  # fmt: skip
FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": {"rotary_pct": 1.0},
    "phi": {"num_key_value_heads": 2, "partial_rotary_factor": 1.0},
}


def chat_tokenizer(template=TEMPLATE, **special):
    """The tokenizer of words with a chat template, and special tokens as given."""
    inner = tokenizer(framed=False)
    inner.add_special_tokens({"additional_special_tokens": ["[CLS]"], **special})
    inner.chat_template = template
    return inner


def chat_model(folder, family="llama", more_rows=0, template=TEMPLATE, pads=True):
    """A folder with a tiny random model of a family.

    Args:
        folder: where it goes.
        family: one of FAMILIES.
        more_rows: of the embedding beyond the tokenizer's vocabulary, as resized ones have.
        template: of the tokenizer; None: it has none.
        pads: whether the tokenizer has a pad token.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SHAPE, **FAMILIES[family]})
    module = AutoModelForCausalLM.from_config(config)
    if more_rows:
        module.resize_token_embeddings(len(VOCABULARY) + more_rows, mean_resizing=False)
    module.save_pretrained(folder)
    inner = chat_tokenizer(template)
    if not pads:
        inner.pad_token = None
    inner.save_pretrained(folder)
    return str(folder)
