"""An extension is one file of an installed package: its contract tests come with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "optimizers": """
        '''Lion (Chen et al. 2023): the sign of an interpolated momentum.'''
        from collections.abc import Mapping
        from dataclasses import KW_ONLY, dataclass, field
        from typing import ClassVar

        import torch
        from torch import Tensor

        from shared.base.flat import Layout
        from shared.base.options import option
        from shared.optimizers import OPTIMIZERS, restore_
        from shared.optimizers.gradient import Gradient, add_scaled_


        @OPTIMIZERS.register("lion")
        @dataclass
        class Lion:
            exact: ClassVar[bool] = True
            additive: ClassVar[bool] = False

            layout: Layout
            device: torch.device | str = "cpu"
            _: KW_ONLY
            beta1: float = option(0.9, "share of the mean in a step", at_least=0, below=1)
            beta2: float = option(0.99, "decay of the mean", at_least=0, below=1)
            mean: Tensor = field(init=False)

            def __post_init__(self) -> None:
                self.mean = torch.zeros(self.layout.size, device=self.device)

            def step_(self, flat: Tensor, gradient: Gradient, learning_rate: float) -> None:
                update = self.mean * self.beta1
                gradient.add_to_(update, 1 - self.beta1)
                self.layout.clear_padding_(update)
                add_scaled_(flat, update.sign(), -learning_rate)
                self.mean *= self.beta2
                gradient.add_to_(self.mean, 1 - self.beta2)
                self.layout.clear_padding_(self.mean)

            def state(self) -> Mapping[str, Tensor]:
                return {"mean": self.mean}

            def load_state(self, state: Mapping[str, Tensor]) -> None:
                restore_(self.state(), state)
        """,
    "directions": """
        '''Uniform directions of variance 1: a word of the generator makes a number.'''
        from collections.abc import Sequence
        from typing import ClassVar

        import numpy as np
        import torch
        from torch import Tensor

        from shared.base.flat import Layout
        from shared.directions import DIRECTIONS
        from shared.directions.backends import words_on
        from shared.randomness.streams import Key


        def draw(key: Key, addresses: Tensor) -> Tensor:
            blocks, places = torch.unique(addresses // 4, return_inverse=True)
            words = words_on(key, blocks).T[places, addresses % 4]
            return ((words + 0.5) * 2.0**-31 - 1).float() * float(np.float32(3**0.5))


        @DIRECTIONS.register("uniform")
        class Uniform:
            exact: ClassVar[bool] = True
            pointwise: ClassVar[bool] = True

            def __init__(self, layout: Layout) -> None:
                del layout

            def add_to_(self, flat: Tensor, keys: Sequence[Key], coefficients: Sequence[float],
                        start: int = 0) -> None:
                addresses = torch.arange(start, start + flat.numel(), device=flat.device)
                for key, coefficient in zip(keys, coefficients, strict=True):
                    flat += draw(key, addresses) * float(np.float32(coefficient))

            def perturb_(self, out: Tensor, source: Tensor, start: int, key: Key,
                         scale: float) -> None:
                addresses = torch.arange(start, start + out.numel(), device=out.device)
                torch.add(source, draw(key, addresses) * float(np.float32(scale)), out=out)

            def add_rows_(self, rows: Tensor, ids: Tensor, start: int, key: Key,
                          scale: float) -> None:
                width = rows.shape[1]
                columns = torch.arange(width, device=rows.device)
                addresses = start + ids[:, None] * width + columns
                z = draw(key, addresses.reshape(-1)).view(rows.shape)
                rows += z * float(np.float32(scale))
        """,
    "aggregation": """
        '''The mean of the smallest and the largest number of each coordinate.'''
        from shared.aggregation import AGGREGATION


        @AGGREGATION.register("midrange")
        def midrange(vectors, weights):
            return (vectors.min(axis=0) + vectors.max(axis=0)) / 2
        """,
    "modes": """
        '''Gradients in the first round, numbers in all others.'''
        from shared.modes.mode import GRADIENT, MEASURE, MODES, Mode


        def plan(config, round_):
            return GRADIENT if round_ == 1 else MEASURE


        MODES.register("headstart")(Mode(plan, has_interval=True))
        """,
    "codecs": """
        '''Float16: eleven bits of each number; what is too large is refused by decode.'''
        from dataclasses import dataclass

        import numpy as np

        from shared.base.flat import Layout
        from shared.codecs import CODECS
        from shared.codecs.frame import (HEADER_BYTES, check_finite, numbers, open_frame,
                                         pack_vector, seal_frame, unpack_vector)


        @CODECS.register("float16")
        @dataclass(frozen=True)
        class Float16:
            layout: Layout

            @property
            def payload_bytes(self):
                return HEADER_BYTES + 2 * self.layout.parameters

            def encode(self, vector):
                values = pack_vector(self.layout, numbers(self.layout, vector))
                body = np.clip(values, -65504, 65504).astype("<f2").tobytes()
                return seal_frame(b"f16\\0", self.layout.parameters, body)

            def decode(self, payload):
                body = open_frame(b"f16\\0", self.layout.parameters, self.payload_bytes, payload)
                values = np.frombuffer(body, "<f2").astype(np.float32)
                return check_finite(unpack_vector(self.layout, values))
        """,
    "sets": """
        '''Sentences about numbers, for a test.'''
        from shared.data.documents import DATASETS, Documents, Source


        def numbers(max_samples, by="parity"):
            texts = [f"The number {k} is {k} more than nothing at all. " * 3 for k in range(24)]
            groups = [("even", "odd")[k % 2] for k in range(24)]
            return Documents(texts, groups).thin(max_samples)


        DATASETS.register("numbers")(Source(
            numbers, "embedded", "sentences about numbers", ("parity",), "24 texts", "CC0"))
        """,
    "tasks": """
        '''Language modelling with a quarter of the loss, for a test.'''
        from shared.tasks.language_modelling import LanguageModelling
        from shared.tasks.task import TASKS


        class Quarter(LanguageModelling):
            def loss(self, module, rows):
                return super().loss(module, rows) / 4

            def each(self, module, rows):
                return super().each(module, rows) / 4


        @TASKS.register("quarter")
        def quarter(config, model):
            return Quarter(model.tokenizer)
        """,
    "models": """
        '''A GPT-2 that is small enough for a test.'''
        from shared.models.gpt2 import BYTES, Shape, register_size

        register_size("nano-gpt", Shape(16, 1, 2, 32, BYTES))
        """,
}
NAMES = {"optimizers": "lion", "directions": "uniform", "aggregation": "midrange",
         "modes": "headstart", "codecs": "float16", "models": "nano-gpt",
         "sets": "numbers", "tasks": "quarter"}  # fmt: skip
REGISTRIES = {"optimizers": "shared.optimizers:OPTIMIZERS", "tasks": "shared.tasks.task:TASKS",
              "directions": "shared.directions:DIRECTIONS", "codecs": "shared.codecs:CODECS",
              "aggregation": "shared.aggregation:AGGREGATION",
              "models": "shared.models.model:MODELS", "modes": "shared.modes.mode:MODES",
              "sets": "shared.data.documents:DATASETS"}  # fmt: skip
CONTRACTS = ["tests/shared/optimizers/test_optimizers.py", "tests/shared/codecs/test_codecs.py",
             "tests/shared/directions/test_directions.py", "tests/shared/modes/test_modes.py",
             "tests/server/aggregation/test_combine.py",
             "tests/shared/models/test_models.py"]  # fmt: skip
LEAST = {"optimizers": 5, "directions": 5, "aggregation": 3, "modes": 3, "codecs": 4, "models": 1}


def unindent(text):
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines).rstrip() + "\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that has a package with one module of each kind installed."""
    site = tmp_path_factory.mktemp("site")
    package, metadata = site / "extra", site / "extra-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    for kind, text in MODULES.items():
        (package / f"{kind}.py").write_text(unindent(text))
    points = [f"[dandelion.{kind}]\nextra = extra.{kind}\n" for kind in MODULES]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}


def run(environment, *arguments, cwd=ROOT):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_module_of_each_kind_passes_contract_tests_that_nobody_edited(installed):
    names = " or ".join(NAMES.values())
    options = ["-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", names]
    done = run(installed, *options, *CONTRACTS)
    assert done.returncode == 0, done.stdout[-3000:]
    for kind, least in LEAST.items():
        passed = re.findall(rf"\[.*{NAMES[kind]}.*\] PASSED", done.stdout)
        assert len(passed) >= least, kind


def test_every_kind_takes_entry_points_and_knows_what_they_register(installed):
    lines = [f"assert {name!r} in registry({REGISTRIES[kind]!r}), {kind!r}"
             for kind, name in NAMES.items()]  # fmt: skip
    code = "\n".join([
        "from importlib import import_module",
        "def registry(text):",
        "    module, _, name = text.partition(':')",
        "    return getattr(import_module(module), name)",
        *lines,
    ])  # fmt: skip
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    assert set(NAMES) == set(MODULES) == set(REGISTRIES)


@pytest.mark.slow
def test_they_make_a_run_from_python_that_is_verified(installed, tmp_path):
    code = (
        "import dandelion; run = dandelion.run(name='plug', dataset='numbers', task='quarter', "
        "optimizer='lion', model='nano-gpt', num_rounds=2, num_clients=2, queries=2, "
        "block_size=16, eval_blocks=4, learning_rate=1e-3, progress=False); "
        "first = run.evaluations['loss'][0]; assert 1 < first < 6, first; "
        "sites = run.metrics['loss'][0]; assert sites < first / 2, (sites, first); "
        "assert run.verify().digest == run.summary['digest']"
    )
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_they_make_a_run_with_their_own_options_and_defaults(installed, tmp_path):
    chosen = {
        **{"mode": "headstart", "optimizer": "lion", "beta1": 0.95, "directions": "uniform"},
        **{"aggregation": "midrange", "codec": "float16", "model": "nano-gpt"},
        **{"num-rounds": 3, "num-clients": 2, "queries": 2, "block-size": 16, "max-samples": 20},
        **{"eval-blocks": 4, "learning-rate": 0.001, "output-dir": tmp_path},
    }
    pairs = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    done = run(installed, "-m", "dandelion", "run", "--name", "extended", *pairs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "extended" / "config.toml").read_text()
    assert "beta1 = 0.95\n" in text
    assert "beta2 = 0.99\n" in text  # lion's own default, not adam's
    verified = run(installed, "-m", "dandelion", "ledger", "verify", tmp_path / "extended")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.slow
def test_an_option_of_another_optimizer_is_refused_with_those_that_there_are(installed, tmp_path):
    pairs = ["--set", "optimizer=lion", "--set", "momentum=0.5", "--set", f"output-dir={tmp_path}"]
    done = run(installed, "-m", "dandelion", "run", *pairs, cwd=tmp_path)
    assert done.returncode == 2
    assert "has no effect with optimizer 'lion'; its options: beta1, beta2" in done.stderr


README_OPTIMIZER = """
import sys, torch
from dataclasses import dataclass
from pathlib import Path
from shared.base.flat import Layout
from shared.optimizers import OPTIMIZERS

blocks = Path("README.md").read_text().split("```")
(text,) = [block for block in blocks if "@OPTIMIZERS" in block]
exec(text.removeprefix("python"))
SignDescent.state = lambda self: {}
SignDescent.load_state = lambda self, state: None

sys.path.insert(0, "tests/support")
from federation import config, federate

changes = {"optimizer": "sign", "learning_rate": 1e-3, "num_rounds": 12, "queries": 8}
result = federate(config(Path(sys.argv[1]), **changes)).summary
assert result["rounds"] == 12, result
assert result["evaluation_loss_last"] < result["evaluation_loss_first"], result
print(len(result["digest"]))
"""


def test_the_optimizer_of_the_readme_trains(tmp_path):
    """README.md shows it; every site's digest is compared with the server's in each round."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", README_OPTIMIZER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "32\n"), done.stderr
