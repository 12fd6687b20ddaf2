"""``dandelion models``: true counts, and the memory that replicas and optimizers really take."""

import pytest
import small_models
import torch
from typer.testing import CliRunner

from dandelion.bench.memory import estimate, shapes_of
from dandelion.cli.app import app
from shared.base.errors import ConfigError
from shared.config.schema import Config
from shared.estimation.perturber import Perturber
from shared.models.packaged import PACKAGED
from shared.training.oracle import Oracle


def show(*arguments):
    done = CliRunner().invoke(app, ["models", *arguments])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_the_list_has_every_size_with_its_true_count():
    output = show()
    for text in ("20M 17,735,936", "200M 124,439,808", "500M 354,823,168", "800M 872,053,248",
                 "1B 1,065,758,400", *PACKAGED):  # fmt: skip
        assert text in output


def test_a_model_is_explained_from_its_shapes():
    output = show("1B")
    assert "1,065,758,400 parameters in 388 tensors, vocabulary 50,257, 1024 positions" in output
    assert "float32 4.3 GB 4.5 MB 17.1 GB" in output
    assert "bfloat16 2.1 GB 2.2 MB 19.2 GB" in output


def test_a_folder_is_explained(tmp_path):
    output = show(small_models.encoder(tmp_path))
    module = small_models.bert()
    assert f"{sum(p.numel() for p in module.parameters()):,} parameters" in output
    assert "BertModel" in output


def test_a_misspelt_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model '2B'; known: 1B, .*minilm, smollm2-135m"):
        CliRunner().invoke(app, ["models", "2B"], catch_exceptions=False)


@pytest.mark.parametrize("model", ["byte-gpt", "20M"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_memory_said_is_the_memory_taken(dtype, model):
    memory = estimate(shapes_of(model)[0], dtype)
    replica = Oracle.of(Config(dtype=dtype, optimizer="adam", model=model)).replica
    flat = replica.model.flat
    assert memory.replica == flat.nbytes
    perturber = Perturber(replica.model, replica.directions)
    scratch = perturber._scratch.nbytes + perturber._small._rows.nbytes
    assert memory.query == scratch
    state = sum(tensor.nbytes for tensor in replica.optimizer.state().values() if tensor.dim())
    working = 4 * flat.numel() * (dtype == "bfloat16")
    assert memory.adam == flat.nbytes + state + 4 * flat.numel() + working
    assert flat.dtype == getattr(torch, dtype)
