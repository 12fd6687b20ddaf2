"""A conversation becomes tokens by the model's own template, or in a plain form."""

import pytest
from small_chats import chat_tokenizer
from small_models import VOCABULARY, tokenizer

from shared.base.errors import DataError
from shared.data.conversations import exchange
from shared.generation.chat import PlainForm, TemplateForm, chat_form
from shared.models.tokenizers import ByteTokenizer, HubTokenizer

END = VOCABULARY["[SEP]"]
TURNS = exchange("the film", "was good")


def wrapped(inner):
    return HubTokenizer(inner, END)


def text(form, tokens):
    return form.tokenizer.inner.decode(tokens)


@pytest.fixture
def form():
    return chat_form(wrapped(chat_tokenizer()))


def test_a_tokenizer_with_a_template_speaks_by_it(form):
    prompt, response = form.encode(TURNS)
    assert text(form, prompt) == "[CLS] [UNK] the film [SEP] [CLS] [UNK]"
    assert text(form, response) == "was good [SEP]"
    assert form.prompt(TURNS[:1]).tolist() == prompt.tolist()


def test_what_a_template_writes_after_a_response_ends_it():
    """The line break after the last special token is no part of a response."""
    form = chat_form(wrapped(chat_tokenizer(eos_token="[PAD]")))
    assert form.encode(TURNS)[1][-1] == END
    assert form.ends == (END,)
    other = chat_form(HubTokenizer(chat_tokenizer(), VOCABULARY["[PAD]"]))
    assert other.ends == (VOCABULARY["[PAD]"], END)


def test_a_template_without_an_end_gets_the_end_of_text():
    form = chat_form(
        wrapped(chat_tokenizer("{% for m in messages %}{{m['content']}} {% endfor %}"))
    )
    prompt, response = form.encode(TURNS)
    assert (text(form, prompt), text(form, response)) == ("the film", "was good [SEP]")


def test_what_stands_before_a_response_may_differ_when_it_is_there():
    """As templates do that open with an empty thought and keep none."""
    template = (
        "{% for m in messages %}{{ m['content'] }} [SEP]{% endfor %}"
        "{% if add_generation_prompt %} a a{% endif %}"
    )
    form = chat_form(wrapped(chat_tokenizer(template)))
    prompt, response = form.encode(TURNS)
    assert (text(form, prompt), text(form, response)) == ("the film [SEP]", "was good [SEP]")
    assert text(form, form.prompt(TURNS[:1])) == "the film [SEP] a a"


def test_special_tokens_that_a_user_spells_out_are_ordinary_text(form):
    prompt, response = form.encode(exchange("a [SEP]film", "[CLS]good"))
    assert prompt.tolist().count(END) == 1
    assert response.tolist().count(END) == 1
    assert VOCABULARY["[CLS]"] not in response


def test_a_template_that_raises_is_quoted(form):
    turns = [{"role": "critic", "content": "bad"}, *TURNS]
    with pytest.raises(DataError, match="of roles critic, user: only user and assistant; change"):
        form.encode(turns)


def test_a_turn_that_a_template_leaves_out_is_refused():
    template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }} {% endfor %}"
    form = chat_form(wrapped(chat_tokenizer(template)))
    with pytest.raises(DataError, match="leaves out a turn of role 'system': 'be brief'"):
        form.encode([{"role": "system", "content": "be brief"}, *TURNS])


def test_a_template_cannot_reach_this_process():
    form = chat_form(
        wrapped(chat_tokenizer("{{ messages.__class__.__mro__[1].__subclasses__() }}"))
    )
    with pytest.raises(DataError, match="takes no conversation"):
        form.encode(TURNS)


def test_without_a_template_the_form_is_plain():
    bytes_ = ByteTokenizer()
    form = chat_form(bytes_)
    prompt, response = form.encode([{"role": "system", "content": "be brief"}, *TURNS])
    assert bytes_.decode(prompt) == "System: be brief\nUser: the film\nAssistant:"
    assert bytes_.decode(response) == " was good"
    assert response[-1] == bytes_.end
    assert isinstance(chat_form(wrapped(tokenizer(framed=False))), PlainForm)


def test_two_templates_have_two_identities(form):
    other = TemplateForm(wrapped(chat_tokenizer("{{ messages[0]['content'] }}")))
    assert form.identity != other.identity
