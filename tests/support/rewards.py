"""Rewards that tests name as ``rewards:function``: good ones and wrong ones."""

import torch


def likelihood(batch):
    """Minus the cross-entropy of the classes: its objective is the loss."""
    losses = torch.nn.functional.cross_entropy(batch.logits, batch.labels, reduction="none")
    return -losses.double()


def next_likelihood(batch):
    """The same of next tokens, averaged over each block."""
    scores = batch.logits.transpose(1, 2)
    losses = torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")
    return -losses.double().sum(1) / (batch.labels.shape[1] - 1)


def nan(batch):
    """Not a number for the first example."""
    values = likelihood(batch)
    values[0] = torch.nan
    return values


def mean(batch):
    """One number in all."""
    return likelihood(batch).mean()


def number(batch):
    """No tensor."""
    return float(mean(batch))


def short(batch):
    """A number too few."""
    return likelihood(batch)[1:]


LEAST = 4


def nan_of_few(batch):
    """Not a number for batches below LEAST examples."""
    return likelihood(batch) * (torch.nan if len(batch.rows) < LEAST else 1)


def short_of_few(batch):
    """A number too few for batches below LEAST examples."""
    return likelihood(batch)[len(batch.rows) < LEAST :]


CONSTANT = 3
