"""The task: ten digits as a display of seven segments shows them, shifted and noisy, 12 by 12."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SIDE, NOISE, EXAMPLES, HELD_OUT = 12, 0.3, 600, 1000
LIT = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]
SEGMENTS = {  # rows and columns of each
    "a": (slice(0, 1), slice(0, 5)), "g": (slice(4, 5), slice(0, 5)),
    "d": (slice(8, 9), slice(0, 5)), "f": (slice(0, 5), slice(0, 1)),
    "b": (slice(0, 5), slice(4, 5)), "e": (slice(4, 9), slice(0, 1)),
    "c": (slice(4, 9), slice(4, 5)),
}  # fmt: skip


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16 * (SIDE // 4) ** 2, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.fc(x.flatten(1))


def draw(count, seed):
    """Pictures (count, 1, 12, 12) and their digits (count,)."""
    random = torch.Generator().manual_seed(seed)
    shapes = torch.zeros(10, SIDE, SIDE)
    for digit, segments in enumerate(LIT):
        for segment in segments:
            shapes[digit, 1:10, 3:8][SEGMENTS[segment]] = 1.0
    digits = torch.randint(10, (count,), generator=random)
    shifts = torch.randint(-1, 2, (count, 2), generator=random).tolist()
    moved = [shapes[d].roll(s, (0, 1)) for d, s in zip(digits.tolist(), shifts)]
    noise = torch.randn(count, SIDE, SIDE, generator=random) * NOISE
    return (torch.stack(moved) + noise).unsqueeze(1), digits


@cache
def load_data(partition_id):
    """A client's own examples, for training and for evaluation."""
    pictures, digits = draw(EXAMPLES, 1 + partition_id)
    cut = EXAMPLES * 4 // 5
    train = TensorDataset(pictures[:cut], digits[:cut])
    rest = TensorDataset(pictures[cut:], digits[cut:])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(rest, batch_size=64)


def compute_loss(net, batch):
    """Mean loss of a batch."""
    pictures, digits = batch
    return F.cross_entropy(net(pictures), digits)


def train_one_epoch(net, trainloader, lr):
    """One epoch; returns the mean loss."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    total = 0.0
    for batch in trainloader:
        optimizer.zero_grad()
        loss = compute_loss(net, batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(trainloader)


def test(net, testloader):
    """Loss and accuracy."""
    net.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for pictures, digits in testloader:
            scores = net(pictures)
            loss += F.cross_entropy(scores, digits, reduction="sum").item()
            correct += (scores.argmax(1) == digits).sum().item()
            count += len(digits)
    return loss / count, correct / count
