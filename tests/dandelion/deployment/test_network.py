"""The network of the end-to-end tests: a node reaches the server by its proxy or not at all."""

import subprocess
import sys

import pytest
from network import PORT, Loopback, Namespaces, may_make_namespaces
from processes import until

from dandelion.engines.flower_simulation import free_port

pytestmark = pytest.mark.slow
SERVE = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"hello")
        connection.close()
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as connection:
    print(connection.recv(9).decode())
"""


def python(where: list[str], script: str, *words: str) -> "subprocess.Popen[str]":
    command = [*where, sys.executable, "-c", script, *words]
    return subprocess.Popen(command, text=True, stdout=-1, stderr=-1)


def ask(net: Loopback | Namespaces, name: str) -> str:
    """What the server says to a node."""
    where, address = net.node(name)
    return python(where, ASK, *address.split(":")).communicate()[0].strip()


def networks() -> list[type]:
    return [Loopback, Namespaces] if may_make_namespaces() else [Loopback]


@pytest.mark.parametrize("kind", networks())
def test_a_node_is_cut_off_and_comes_back(kind):
    net = Loopback(free_port()) if kind is Loopback else Namespaces()
    server = python(net.server(), SERVE, net.host, str(net.port))
    try:
        assert server.stdout.readline() == "ready\n"
        until(lambda: ask(net, "a") == "hello", "an answer")
        assert net.proxies["a"].counted() == (0, 5)
        until(lambda: ask(net, "b") == "hello", "an answer")
        net.cut("a")
        assert ask(net, "a") == ""
        assert ask(net, "b") == "hello"
        net.mend("a")
        until(lambda: ask(net, "a") == "hello", "an answer")
    finally:
        server.kill()
        server.communicate()
        net.close()


@pytest.mark.skipif(Namespaces not in networks(), reason="network namespaces need root")
def test_a_node_has_no_way_round_its_proxy():
    net = Namespaces()
    server = python(net.server(), SERVE, net.host, str(net.port))
    try:
        assert server.stdout.readline() == "ready\n"
        where, _ = net.node("a")
        tried = python(where, ASK, net._address(0, 2), str(PORT))
        assert "unreachable" in tried.communicate()[1]
    finally:
        server.kill()
        server.communicate()
        net.close()
