"""The losses of a GPT-2's next tokens as one compiled function of its parameters and a batch.

An example is computed from its tokens to its losses before the next one begins, so what it needs
stays in cache, and its numbers depend on no other example. A shape is (layers, width, heads,
vocabulary). Addresses count bytes, sizes count elements.
"""

import numpy as np
from numba import carray, njit

from shared.directions.kernels.compiled import integers_at, kernel
from shared.directions.kernels.tiles import COLUMNS, ROWS
from shared.models.kernels.attention import attend, attention_room
from shared.models.kernels.elementary import (
    MASKED,
    exponentials_,
    gelu_,
    norm_rows,
)
from shared.models.kernels.products import (
    FLOAT,
    matrix_at,
    multiply,
    pack_columns,
    pack_rows,
    vector_at,
)

EPS = np.float32(1e-5)  # of the norms
EMBEDDINGS, PER_BLOCK = 2, 12  # tensors, in the module's order
SIGNATURE = f"int64({'int64, ' * 2}int64[::1], {'int64, ' * 7}int64)"


def pack_size(layers, width, vocabulary):
    """Elements of all matrices, packed."""
    return width * (12 * layers * width + -(-vocabulary // COLUMNS) * COLUMNS)


def room_size(length, width, heads, vocabulary):
    """Elements of room that one example of ``length`` tokens needs."""
    rows = -(-length // COLUMNS) * COLUMNS
    wide = -(-vocabulary // COLUMNS) * COLUMNS
    return rows * (2 * width + max(4 * width, wide)) + wide + attention_room(rows, width // heads)


@njit
def _pack(packed, tensors, layers, width, vocabulary):
    """Pack the matrices of every block, then the embedding, which is the output matrix too."""
    area, at = FLOAT * width * width, packed
    for layer in range(layers):
        own = tensors[EMBEDDINGS + PER_BLOCK * layer :]
        pack_columns(at, own[2], width, 3 * width, 3 * width)
        pack_columns(at + 3 * area, own[4], width, width, width)
        pack_columns(at + 4 * area, own[8], width, 4 * width, 4 * width)
        pack_columns(at + 8 * area, own[10], 4 * width, width, width)
        at += 12 * area
    pack_rows(at, tensors[0], vocabulary, width, width)


@njit
def _embed(h, tokens, tokens_table, positions_table):
    """Write the embeddings of tokens (T,) and their positions into h (rows, n); 0 after them."""
    h[len(tokens) :] = np.float32(0)
    for t in range(len(tokens)):
        for i in range(h.shape[1]):
            h[t, i] = tokens_table[tokens[t], i] + positions_table[t, i]


@njit
def _add_to_rows(h, bias):
    for row in range(h.shape[0]):
        for i in range(h.shape[1]):
            h[row, i] += bias[i]


@njit
def _attend_block(h, x, inner, own, packed, zeros, room, rows, width, heads):
    """Add to hidden states h what attention gives; x and ``inner`` are overwritten."""
    hidden, normed = matrix_at(h, rows, width), matrix_at(x, rows, width)
    norm_rows(normed, hidden, vector_at(own[0], width), vector_at(own[1], width), EPS)
    multiply(inner, 3 * width, x, width, packed, rows, width, 3 * width, own[3], 0)
    attend(x, inner, zeros, room, rows, heads, width // heads)
    _add_to_rows(hidden, vector_at(own[5], width))
    panels = packed + FLOAT * 3 * width * width
    multiply(h, width, x, width, panels, rows, width, width, h, width)


@njit
def _perceive_block(h, x, inner, own, packed, rows, width):
    """Add to hidden states h what the perceptron gives; x and ``inner`` are overwritten."""
    hidden, normed, area = matrix_at(h, rows, width), matrix_at(x, rows, width), width * width
    norm_rows(normed, hidden, vector_at(own[6], width), vector_at(own[7], width), EPS)
    first, second = packed + FLOAT * 4 * area, packed + FLOAT * 8 * area
    multiply(inner, 4 * width, x, width, first, rows, width, 4 * width, own[9], 0)
    gelu_(vector_at(inner, rows * 4 * width))
    _add_to_rows(hidden, vector_at(own[11], width))
    multiply(h, width, inner, 4 * width, second, rows, 4 * width, width, h, width)


@njit
def _cross_entropy(losses, scores, tokens):
    """Write the loss of each next token (T,) by scores (rows, n); 0 at the last."""
    losses[-1] = np.float32(0)
    for t in range(len(tokens) - 1):
        wanted = np.float64(scores[t, tokens[t + 1]])
        total, most = exponentials_(scores[t])
        losses[t] = np.float32(np.log(np.float64(total)) + np.float64(most) - wanted)


@njit
def _example(losses, tokens, tensors, packed, room, shape):
    """Write the losses (T,) of one example's tokens (T,)."""
    layers, width, heads, vocabulary = shape
    rows, most = -(-len(tokens) // ROWS) * ROWS, -(-len(tokens) // COLUMNS) * COLUMNS
    wide = -(-vocabulary // COLUMNS) * COLUMNS
    x = room + FLOAT * most * width
    inner = x + FLOAT * most * width
    start = inner + FLOAT * most * max(4 * width, wide)  # of sums: zeros
    rest = start + FLOAT * wide
    zeros = vector_at(start, wide)
    zeros[:] = np.float32(0)
    tables = matrix_at(tensors[0], vocabulary, width), matrix_at(tensors[1], len(tokens), width)
    _embed(matrix_at(room, rows, width), tokens, *tables)
    last = tensors[EMBEDDINGS + PER_BLOCK * layers :]
    for layer in range(layers):
        own = tensors[EMBEDDINGS + PER_BLOCK * layer :]
        at = packed + FLOAT * 12 * layer * width * width
        _attend_block(room, x, inner, own, at, start, rest, rows, width, heads)
        _perceive_block(room, x, inner, own, at, rows, width)
    normed, hidden = matrix_at(x, rows, width), matrix_at(room, rows, width)
    norm_rows(normed, hidden, vector_at(last[0], width), vector_at(last[1], width), EPS)
    zeros[vocabulary:] = MASKED  # columns that only fill a panel
    output = packed + FLOAT * 12 * layers * width * width
    multiply(inner, wide, x, width, output, rows, width, wide, start, 0)
    _cross_entropy(losses, matrix_at(inner, rows, wide), tokens)


@kernel(SIGNATURE)
def token_losses(
    losses, tokens, tensors, packed, room, count, length, layers, width, heads, vocabulary
):
    """Write the losses (count, length) of tokens; return 0 if one is not in the vocabulary."""
    ids, out = carray(integers_at(tokens), (count, length)), matrix_at(losses, count, length)
    for i in range(count):
        for t in range(length):
            if ids[i, t] < 0 or ids[i, t] >= vocabulary:
                return 0
    _pack(packed, tensors, layers, width, vocabulary)
    for i in range(count):
        _example(out[i], ids[i], tensors, packed, room, (layers, width, heads, vocabulary))
    return 1
