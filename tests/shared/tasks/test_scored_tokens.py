"""Rows of which some tokens are predicted: what they hold, and the loss of those."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from shared.models.load import load_model
from shared.models.next_token import loss_tensor
from shared.tasks.scored_tokens import (
    mark_scored,
    response_losses,
    split_row,
    targets_of,
    tokens_of,
)

PROMPT, RESPONSE = np.array([5, 6, 7]), np.array([8, 1])


@pytest.fixture(scope="module")
def module():
    return load_model("byte-gpt", 0).module


def batch(*rows):
    longest = max(map(len, rows)) + 2
    padded = [np.append(row, np.full(longest - len(row), -1)) for row in rows]
    return torch.from_numpy(np.stack(padded))


def test_a_row_has_the_prompt_and_the_marked_response():
    row = mark_scored(PROMPT, RESPONSE)
    assert [part.tolist() for part in split_row(np.append(row, -1))] == [[5, 6, 7], [8, 1]]
    rows = batch(row, PROMPT[:1])
    assert tokens_of(rows).tolist() == [[5, 6, 7, 8, 1], [5, 0, 0, 0, 0]]
    assert targets_of(rows).tolist() == [[-100, -100, 8, 1, -100], [-100] * 5]


def test_the_loss_is_the_mean_over_the_response(module):
    rows = batch(mark_scored(PROMPT, RESPONSE), mark_scored(PROMPT[:1], RESPONSE[:1]))
    scores = module(tokens_of(rows)).logits.detach()
    expected = [
        F.cross_entropy(scores[0, 2:4], torch.tensor([8, 1])),
        F.cross_entropy(scores[1, :1], torch.tensor([8])),
    ]
    assert response_losses(module, rows).tolist() == pytest.approx([e.item() for e in expected])


def test_a_row_of_which_all_is_predicted_is_a_block(module):
    tokens = torch.randint(3, 200, (2, 9))
    rows = batch(*[mark_scored(row[:1], row[1:]) for row in tokens.numpy()])
    assert response_losses(module, rows).mean().item() == pytest.approx(
        loss_tensor(module, tokens).item(), rel=1e-6
    )


def test_the_output_layer_sees_the_predicted_positions_alone(module):
    rows = batch(mark_scored(PROMPT, RESPONSE))
    seen = []
    hook = module.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    response_losses(module, rows)
    hook.remove()
    assert seen == [(1, 2, 259)]
    assert not module.lm_head._forward_pre_hooks


def test_the_gradient_is_that_of_the_loss_by_definition(module):
    rows = batch(mark_scored(PROMPT, RESPONSE))
    weight = module.transformer.wte.weight
    scores = module(tokens_of(rows)).logits[0, 2:4]
    expected = torch.autograd.grad(F.cross_entropy(scores, torch.tensor([8, 1])), weight)[0]
    ours = torch.autograd.grad(response_losses(module, rows).mean(), weight)[0]
    torch.testing.assert_close(ours, expected)


def test_a_row_without_a_response_has_no_loss(module):
    assert response_losses(module, batch(PROMPT, mark_scored(PROMPT, RESPONSE)))[0] == 0


def test_batches_of_several_points_keep_their_own_rows_in_the_output_layer(module):
    """Point 1 predicts three tokens, point 2 one: zeros fill its row, and count for nothing."""
    rows = batch(
        mark_scored(PROMPT, RESPONSE), mark_scored(PROMPT, RESPONSE[:1]),
        mark_scored(PROMPT, RESPONSE[:1]), PROMPT,
    )  # fmt: skip
    seen = []
    hook = module.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    losses = response_losses(module, rows, points=2)
    hook.remove()
    assert seen == [(2, 3, 259)]
    torch.testing.assert_close(losses, response_losses(module, rows), rtol=1e-6, atol=0)
