"""``dandelion export``: folders, adapters and GGUF files of a round, and what is uploaded."""

import json
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from federation import config
from peft import PeftModel
from tiny_reviews import CLASSES, folders, reviews  # noqa: F401  (fixtures)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

import dandelion
from dandelion.cli.app import app
from dandelion.engines.local import run_local
from dandelion.export.hub_upload import files_of, push
from shared.base.errors import ConfigError, DataError
from shared.models.load import load_model

BLOCK = torch.arange(30).view(1, 30) + 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_local(config(tmp_path_factory.mktemp("runs"), name="plain", num_rounds=2))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    own = {"scope": "lora", "lora_rank": 2, "learning_rate": 0.5, "num_rounds": 2}
    return run_local(config(tmp_path_factory.mktemp("runs"), name="adapted", **own))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))


def export(*words):
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def logits(module, block=BLOCK):
    with torch.inference_mode():
        return module.eval()(block).logits


def test_a_folder_and_a_gguf_file_are_the_model_of_the_round(plain, tmp_path):
    said = export(plain, "--round", 1, "--out", tmp_path / "m", "--gguf", tmp_path / "m.gguf")
    model = dandelion.load_run(plain).replay(1)
    assert said.splitlines()[0] == f"round 1, digest {model.digest}"
    assert "--round 1 --out model" in (tmp_path / "m" / "README.md").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(logits(again), logits(model.module), rtol=0, atol=0)
    read = load_model(str(tmp_path / "m.gguf"), 1)
    torch.testing.assert_close(logits(read.module), logits(model.module), rtol=0, atol=1e-5)
    last = dandelion.load_run(plain).model()
    assert not torch.equal(logits(again), logits(last.module))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # in PEFT
def test_adapters_go_alone_and_peft_puts_them_on_the_base_model(adapted, tmp_path):
    export(adapted, "--out", tmp_path / "adapters")
    export(adapted, "--out", tmp_path / "whole", "--merge")
    dandelion.load_run(adapted).replay(0).save(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    whole = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))
    assert (logits(base) - whole).abs().max() > 1e-4  # they were trained
    together = PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(logits(together), whole, rtol=0, atol=1e-5)
    small = sum(path.stat().st_size for path in (tmp_path / "adapters").glob("*.safetensors"))
    assert small < 0.2 * (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert (tmp_path / "adapters" / "README.md").is_file()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # in PEFT
def test_the_head_that_is_trained_with_adapters_goes_with_them(folders, reviews, tmp_path):
    own = {**CLASSES, "model": folders["head"], "scope": "lora", "lora_rank": 2, "mode": "fo"}
    run = run_local(config(tmp_path, name="heads", num_rounds=2, bp_learning_rate=0.5, **own))
    export(run, "--out", tmp_path / "adapters")
    export(run, "--out", tmp_path / "whole", "--merge")
    base = AutoModelForSequenceClassification.from_pretrained(folders["head"])
    block = BLOCK[:, :8] % base.config.vocab_size
    whole = logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole"), block)
    assert (logits(base, block) - whole).abs().max() > 1e-3
    together = PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(logits(together, block), whole, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == Path(folders["head"]).name  # no path leaves


def test_a_gguf_file_has_the_adapters_merged(adapted, tmp_path):
    export(adapted, "--gguf", tmp_path / "m.gguf")
    model = dandelion.load_run(adapted).model()
    read = load_model(str(tmp_path / "m.gguf"), 1)
    torch.testing.assert_close(logits(read.module), logits(model.module), rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_refused(plain, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    for words, text in (
        ((), "--out FOLDER, --gguf FILE or --push-to-hub"),
        (("--out", tmp_path / "full"), "a new or empty folder expected"),
        (("--out", tmp_path / "m", "--merge"), "scope lora expected, got 'full'"),
        (("--out", tmp_path / "m", "--dry-run"), "belong to --push-to-hub"),
        (("--push-to-hub", "a/b/c"), "owner/name expected, got 'a/b/c'"),
        (("--out", tmp_path / "m", "--round", 9), "round: 0 to 2 expected, got 9"),
    ):
        with pytest.raises(ConfigError, match=text):
            export(plain, *words)
    assert not (tmp_path / "m").exists()


def test_a_dry_run_shows_the_files_and_uploads_nothing(plain, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the hub was called"))
    said = export(plain, "--push-to-hub", "me/tiny", "--dry-run")
    names = {line.split()[-1] for line in said.splitlines()[1:-1]}
    assert {"README.md", "config.json", "model.safetensors"} <= names
    assert said.splitlines()[-1] == "nothing was uploaded to me/tiny"


def test_a_push_creates_the_repository_and_uploads_the_model_alone(plain, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(sorted(path.name for path in files_of(Path(options["folder_path"]))))
            calls.append(options["commit_message"])
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    said = export(plain, "--push-to-hub", "me/tiny", "--private")
    (name, options), files, message = calls
    assert (name, options) == ("me/tiny", {"private": True, "exist_ok": True})
    assert {"README.md", "model.safetensors"} <= set(files)
    assert message == f"byte-gpt after round 2, digest {dandelion.load_run(plain).model().digest}"
    assert said.splitlines()[-1] == "https://hub/commit/1"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload of small files takes."""

    commits, repositories = [], []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer, status = {}, 200
        if self.headers.get("Authorization") != "Bearer right":
            answer, status = {"error": "Invalid username or password."}, 401
        elif self.path == "/api/repos/create":
            self.repositories.append(json.loads(body))
            answer = {"url": f"http://{self.headers['Host']}/me/tiny"}
        elif self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            answer = {"files": files}
        elif "/commit/main" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            url = f"http://{self.headers['Host']}/me/tiny/commit/1"
            answer = {"commitUrl": url, "commitOid": "1"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine that ``huggingface_hub`` itself talks to."""
    monkeypatch.setattr(Hub, "commits", [])
    monkeypatch.setattr(Hub, "repositories", [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with_token = partial(huggingface_hub.HfApi, address)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: with_token(token="right"))
        yield with_token
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    """A folder of a model in which a ledger and data have been left."""
    for name in ("README.md", "config.json", "model.safetensors", "ledger.sqlite", "train.csv",
                 "shards.json", "metrics.csv"):  # fmt: skip
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(name)
    return tmp_path / "m"


def test_the_hubs_own_library_uploads_the_model_and_neither_ledger_nor_data(hub, folder):
    address = push(folder, "me/tiny", True, "tiny after round 2")
    assert address.endswith("/me/tiny/commit/1")
    ((header, *files),) = Hub.commits
    assert header["value"]["summary"] == "tiny after round 2"
    sent = {each["value"]["path"] for each in files}
    assert sent == {"README.md", "config.json", "model.safetensors"}
    assert sent == {path.name for path in files_of(folder)}
    (repository,) = Hub.repositories
    assert (repository["name"], repository["organization"]) == ("tiny", "me")
    assert (repository.get("visibility") or repository.get("private")) in ("private", True)


def test_without_the_right_token_the_error_says_where_to_put_one(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub(token="wrong"))
    with pytest.raises(DataError, match=r"uploaded: .*401.*hf auth login.*HF_TOKEN"):
        push(folder, "me/tiny", False, "x")
    assert Hub.commits == []


def test_a_run_is_exported_from_python_too(adapted, tmp_path):
    run = dandelion.load_run(adapted)
    alone = run.export(tmp_path / "adapters", round=1)
    assert (alone / "adapter_model.safetensors").is_file()
    file = run.export(tmp_path / "m.gguf", dtype="f16")
    assert load_model(str(file), 1).module.num_parameters() > 0
    with pytest.raises(ConfigError, match=r"a file that ends in \.gguf expected"):
        run.export(tmp_path / "other", dtype="f16")
