"""The cables of a federation of tests: network namespaces where they may be made, else loopback."""

import os
import subprocess
from dataclasses import dataclass, field

from processes import until
from proxy import CountingProxy

PORT = 8000  # of the server, and of each node's proxy, within their namespaces


def may_make_namespaces() -> bool:
    """Whether this process can make network namespaces and cables between them."""
    name = f"probe{os.getpid()}"
    try:
        _ip("netns", "add", name)
        try:
            _ip(
                "link", "add", f"v{os.getpid()}", "type", "veth", "peer", "name", "a", "netns", name
            )
        finally:
            _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@dataclass
class Loopback:
    """All on 127.0.0.1; between a node and the server there is its proxy."""

    port: int  # of the server
    proxies: dict[str, CountingProxy] = field(default_factory=dict)
    addresses = ("127.0.0.1",)  # that the server's certificate is for
    host = "127.0.0.1"  # where the server listens

    def server(self) -> list[str]:
        """What a command of the server's side begins with."""
        return []

    def node(self, name: str) -> tuple[list[str], str]:
        """What a node's command begins with, and where it finds the server."""
        if name not in self.proxies:
            self.proxies[name] = CountingProxy(self.port)
        return [], f"127.0.0.1:{self.proxies[name].port}"

    def cut(self, name: str) -> None:
        """Nothing comes from the node or goes to it any more."""
        self.proxies[name].cut()

    def mend(self, name: str) -> None:
        """The node is there again."""
        self.proxies[name].mend()

    def close(self) -> None:
        """Take everything down."""
        for proxy in self.proxies.values():
            proxy.close()


@dataclass
class Namespaces:
    """The server and each node have a network of their own.

    A node's cable ends at its proxy, the server's at all proxies: there is no other way. A cut
    cable says nothing: packets are lost, as between real machines.
    """

    port: int = PORT
    proxies: dict[str, CountingProxy] = field(default_factory=dict)
    host = "0.0.0.0"

    def __post_init__(self) -> None:
        taken, own = _ip("netns", "list"), os.getpid() % 200  # a killed test leaves its spaces
        free = (k % 200 for k in range(own, own + 200) if f"dandelion{k % 200}-" not in taken)
        self._number, self._names = next(free), list[str]()
        self._cable("server")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The server's certificate is for every proxy's end of a cable."""
        return tuple(self._address(k, 1) for k in range(1, 16))

    def server(self) -> list[str]:
        return ["ip", "netns", "exec", self._space("server")]

    def node(self, name: str) -> tuple[list[str], str]:
        if name not in self._names:
            self._cable(name)
            here = self._address(self._names.index(name), 1)
            there = self._address(0, 2)
            self.proxies[name] = CountingProxy(self.port, there, here, self.port)
        at = self._address(self._names.index(name), 1)
        return ["ip", "netns", "exec", self._space(name)], f"{at}:{self.port}"

    def cut(self, name: str) -> None:
        _ip("link", "set", self._link(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._link(name), "up")
        self._carries(name)

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        for name in self._names:
            _ip("link", "del", self._link(name))
            _ip("netns", "del", self._space(name))

    def _cable(self, name: str) -> None:
        """A namespace, and a cable from here to it."""
        self._names.append(name)
        space, link, number = self._space(name), self._link(name), self._names.index(name)
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("link", "add", link, "type", "veth", "peer", "name", "up0", "netns", space)
        _ip("addr", "add", f"{self._address(number, 1)}/30", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", space, "addr", "add", f"{self._address(number, 2)}/30", "dev", "up0")
        _ip("-n", space, "link", "set", "up0", "up")
        self._carries(name)

    def _carries(self, name: str) -> None:
        """Wait until both ends see each other: the kernel says so up to a second later."""
        for end in (("-n", self._space(name)), ()):
            link = "up0" if end else self._link(name)
            until(lambda end=end, link=link: "state UP" in _ip(*end, "link", "show", link), link)

    def _address(self, number: int, end: int) -> str:
        """Of a cable's end, from the range that is kept for tests of networks (RFC 2544)."""
        return f"198.18.{self._number}.{4 * number + end}"

    def _space(self, name: str) -> str:
        return f"dandelion{self._number}-{name}"

    def _link(self, name: str) -> str:
        return f"dd{self._number}-{self._names.index(name)}"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
