"""A model writes what its own logits say, whatever is beside a prompt in a batch."""

import numpy as np
import pytest
import torch
from small_chats import FAMILIES, chat_model

from shared.base.errors import ConfigError
from shared.config.text_section import TextSettings
from shared.generation.writer import Writer
from shared.models.load import load_model
from shared.models.tokenizers import ByteTokenizer

PROMPTS = [np.array([5, 6, 7, 8]), np.array([9]), np.array([4, 10])]
NONE = (1 << 20,)  # no token ends a text


def writer(model, ends=NONE, **settings):
    return Writer(model.tokenizer, ends, TextSettings(**settings), model.positions)


def greedy(module, prompt, most):
    """The definition: the likeliest token, again and again, without cache or batch."""
    tokens = prompt.tolist()
    for _ in range(most):
        tokens.append(int(module(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def model():
    return load_model("byte-gpt", 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_it_finds_likeliest(family, tmp_path):
    """Without a pad token, with more rows of the embedding than tokens, and padded at the left."""
    model = load_model(chat_model(tmp_path / family, family, more_rows=3, pads=False), 0)
    before = [parameter.detach().clone() for parameter in model.module.parameters()]
    written = writer(model).write(model.module, PROMPTS, 5)
    assert [tokens.tolist() for tokens in written] == [
        greedy(model.module, prompt, 5) for prompt in PROMPTS
    ]
    assert all(map(torch.equal, before, model.module.parameters()))


def test_what_a_models_own_file_says_of_generation_does_not_count(model):
    expected = greedy(model.module, PROMPTS[0], 4)
    before = model.module.generation_config
    before.repetition_penalty, before.max_length = 50.0, 6
    try:
        assert writer(model).write(model.module, PROMPTS[:1], 4)[0].tolist() == expected
        assert model.module.generation_config is before
    finally:
        before.repetition_penalty, before.max_length = None, None


def test_a_text_ends_at_an_end_token_and_another_goes_on(model):
    first, second = (greedy(model.module, prompt, 4) for prompt in PROMPTS[:2])
    end = next(token for token in first if token not in second)
    written = writer(model, ends=(end,)).write(model.module, PROMPTS[:2], 4)
    assert written[0].tolist() == first[: first.index(end)]
    assert written[1].tolist() == second


def test_sampling_is_repeated_by_its_seed_and_leaves_torchs_own_generator_alone(model):
    state = torch.random.get_rng_state()
    ours = writer(model, temperature=1.0)
    first, again = (ours.write(model.module, PROMPTS, 8) for _ in range(2))
    assert all(map(np.array_equal, first, again))
    assert torch.equal(state, torch.random.get_rng_state())
    other = Writer(model.tokenizer, NONE, ours.settings, model.positions, seed=2)
    assert not all(map(np.array_equal, first, other.write(model.module, PROMPTS, 8)))
    likeliest = writer(model, temperature=1.0, top_p=1e-6).write(model.module, PROMPTS, 4)
    assert likeliest[0].tolist() == greedy(model.module, PROMPTS[0], 4)


class Letters(ByteTokenizer):
    """Every token is a letter."""

    def decode(self, tokens):
        return "".join(chr(97 + token % 26) for token in tokens.tolist())


def test_a_stop_word_ends_the_writing_and_is_no_part_of_the_text(model):
    letters = Letters()
    text = letters.decode(np.array(greedy(model.module, PROMPTS[0], 12)))
    stop = text[2:4]
    settings = TextSettings(stop_words=f"never|{stop}")
    ours = Writer(letters, NONE, settings, model.positions)
    tokens = ours.write(model.module, PROMPTS[:1], 12)[0]
    assert len(tokens) == text.index(stop) + 2
    assert ours.text(tokens) == text[: text.index(stop)]


def test_a_prompt_without_room_loses_its_first_tokens(model):
    long = np.arange(200) % 200 + 3
    written = writer(model).write(model.module, [long], 8)
    assert written[0].tolist() == greedy(model.module, long[-120:], 8)


def test_special_tokens_are_no_part_of_a_text(tmp_path):
    model = load_model(chat_model(tmp_path / "llama"), 0)
    assert writer(model).text(np.array([3, 6, 7, 0])) == "film was"


def test_only_a_module_of_transformers_writes(model):
    with pytest.raises(ConfigError, match="that generates expected, got Linear"):
        writer(model).write(torch.nn.Linear(1, 1), PROMPTS, 1)


def test_a_total_of_probability_needs_a_temperature():
    with pytest.raises(ConfigError, match=r"top-p = 0.5 with temperature = 0"):
        TextSettings(top_p=0.5)
