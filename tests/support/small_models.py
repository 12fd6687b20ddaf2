"""Tiny models of others' architectures, saved as folders with a tokenizer of words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("a", "the", "film", "was", "good", "bad", "great", "terrible", "it", "It", "and", "plot")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}


def tokenizer(framed):
    """Splits at spaces; ``framed`` puts [CLS] and [SEP] around a text, as BERT's does."""
    inner = Tokenizer(models.WordLevel(VOCABULARY, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if not framed:
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]", **special)
    ends = [(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="[CLS]", sep_token="[SEP]", **special
    )


def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=24, max_position_embeddings=32,
                   initializer_range=0.3, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    )  # fmt: skip


def llama(inner=24):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=inner,
                    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    initializer_range=0.3, max_position_embeddings=32, tie_word_embeddings=True)
    )  # fmt: skip


def saved(folder, module, framed):
    """The folder, with model and tokenizer in it."""
    module.save_pretrained(folder)
    tokenizer(framed).save_pretrained(folder)
    return str(folder)


def encoder(folder):
    """A folder with a tiny BERT, without a head."""
    return saved(folder, bert(), framed=True)


def causal(folder, inner=24):
    """A folder with a tiny Llama."""
    return saved(folder, llama(inner), framed=False)
