"""Passes are captured when a shape is used again and again, and give the numbers of plain ones."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from shared.base.flat import flatten
from shared.captured import passes as captured_passes
from shared.captured.passes import CapturedPasses
from shared.directions import DIRECTIONS
from shared.directions.low_precision import lower_precision
from shared.estimation.perturber import Perturber
from shared.models.gpt2 import build
from shared.models.next_token import loss_tensor, next_token_loss
from shared.randomness.streams import Key

CARD = torch.device("cuda")


class Captures:
    """Counts captures; a captured pass computes anew, as a graph does."""

    def __init__(self):
        self.shapes, self.started = [], 0

    def __call__(self, compute, rows):
        self.shapes.append(tuple(rows.shape))

        def start(rows):
            self.started += 1
            return compute(rows)

        return start


def use(passes, *sizes):
    for size in sizes:
        assert passes.run("sum", torch.sum, torch.ones(size)) == size


def test_a_shape_is_captured_at_its_third_batch():
    captures = Captures()
    passes = CapturedPasses(captures)
    use(passes, 6, 6, 4, 6, 6)
    assert captures.shapes == [(6,)]
    assert captures.started == 2


def test_a_captured_pass_that_differs_is_not_used(caplog):
    def capture_another(compute, rows):
        return lambda rows: compute(rows) + 1e-3

    passes = CapturedPasses(capture_another)
    use(passes, *[5] * 2 * captured_passes.CAPTURE_FROM)
    assert not passes.is_possible
    assert "not used" in caplog.text


def test_after_some_comparisons_only_the_captured_pass_is_computed():
    computed = []

    def compute(rows):
        computed.append(rows)
        return rows.sum()

    passes = CapturedPasses(lambda _, rows: torch.sum)
    for _ in range(20):
        assert passes.run("sum", compute, torch.ones(5)) == 5
    assert len(computed) == captured_passes.CAPTURE_FROM - 1 + captured_passes.COMPARED


def test_names_and_dtypes_have_passes_of_their_own():
    captures = Captures()
    passes = CapturedPasses(captures)
    for _ in range(captured_passes.CAPTURE_FROM):
        for name, compute in (("sum", torch.sum), ("mean", torch.mean)):
            assert passes.run(name, compute, torch.ones(2, 3)) == compute(torch.ones(2, 3))
        assert passes.run("sum", torch.sum, torch.ones(2, 3, dtype=torch.int64)) == 6
    assert captures.shapes == [(2, 3)] * 3


def test_the_one_that_was_not_used_for_longest_is_dropped_and_hard_to_capture_again(monkeypatch):
    monkeypatch.setattr(captured_passes, "MOST_GRAPHS", 2)
    captures = Captures()
    passes = CapturedPasses(captures)
    use(passes, 1, 1, 1, 2, 2, 2, 1, 3, 3, 3)
    assert captures.shapes == [(1,), (2,), (3,)]
    started = captures.started
    use(passes, 1, 2, 1, 2, 1, 2)  # 1 was used later than 2
    assert captures.shapes == [(1,), (2,), (3,)]
    assert captures.started == started + 3
    use(passes, *[2] * captured_passes.EVICTED * captured_passes.CAPTURE_FROM)
    assert captures.shapes == [(1,), (2,), (3,), (2,)]


def test_a_pass_that_cannot_be_captured_is_computed(caplog):
    def refuse(compute, rows):
        raise RuntimeError("operation not permitted when stream is capturing")

    passes = CapturedPasses(refuse)
    with caplog.at_level("INFO", logger="dandelion"):
        use(passes, *[5] * 2 * captured_passes.CAPTURE_FROM)
    assert not passes.is_possible
    assert caplog.text.count("not permitted") == 1


def test_nothing_is_captured_on_a_processor():
    passes = CapturedPasses.on(torch.device("cpu"))
    assert not passes.is_possible
    use(passes, *[5] * 2 * captured_passes.CAPTURE_FROM)


class StandIn:
    """What captures use of ``torch.cuda``, noted; it is no card, and records nothing."""

    def __init__(self, monkeypatch):
        self.devices, self.captures, self.underway = [], [], 0
        for name in ("device", "stream", "graph", "Stream", "CUDAGraph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    @contextmanager
    def device(self, device):
        self.devices.append(device)
        yield
        self.devices.pop()

    def Stream(self):  # noqa: N802  (torch's name)
        return SimpleNamespace(device=self.devices[-1], wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, stream):
        return nullcontext()

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(pool=lambda: f"pool of {self.devices[-1]}", replay=lambda: None)

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert captured_passes.CAPTURING.locked()  # torch: one capture at a time in a process
        self.captures.append((pool, stream, capture_error_mode))
        yield


def test_each_card_captures_on_a_stream_and_with_memory_of_its_own(monkeypatch):
    """Torch's own stream for captures is of the first card, and a pool needs the same stream."""
    cuda = StandIn(monkeypatch)
    makers = [captured_passes.GraphMaker(f"cuda:{number}") for number in range(2)]
    for maker in (*makers, *makers):
        assert maker(torch.sum, torch.ones(5))(torch.ones(5)) == 5
    pools, streams, modes = zip(*cuda.captures, strict=True)
    assert pools == (None, None, "pool of cuda:0", "pool of cuda:1")
    assert [stream.device for stream in streams] == ["cuda:0", "cuda:1"] * 2
    assert streams[:2] == streams[2:]
    assert set(modes) == {"thread_local"}
    assert cuda.devices == []
    assert not captured_passes.CAPTURING.locked()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_has_the_losses_of_plain_passes_at_every_point(dtype):
    module = build("byte-gpt", seed=1).module.to(CARD).to(dtype)
    model = flatten(module)
    signs = lower_precision(DIRECTIONS["rademacher"](model.layout), dtype)
    perturber, passes = Perturber(model, signs, scratch=1 << 14), CapturedPasses.on(CARD)
    before = model.flat.clone()
    for index in range(4):
        blocks = (torch.arange(128, device=CARD) * (index + 1)).view(4, 32) % 256
        for scale in (0.01, -0.01, 0.0):
            with perturber.at(Key(2**63 + 5, 3, 1, index), scale), torch.inference_mode():
                plain = next_token_loss(module, blocks)
                ours = passes.run(True, lambda rows: loss_tensor(module, rows), blocks)
                assert float(ours) == plain
    assert passes.is_possible
    assert torch.equal(model.flat, before)
