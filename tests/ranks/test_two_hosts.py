"""Two hosts, as network namespaces of this machine: torchrun on each, and the cable between them is cut."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.faults.killing import differences, result

from .starting import run
from .test_same_results import STILL, arguments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.machine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces need Linux and root"),
]
SILENCE = 12
"""Seconds without a cable: more than a process may be silent."""


class Hosts:
    """Two namespaces, 10.77.0.1 and 10.77.0.2."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute, NetNS, netns  # type: ignore[import-untyped]

        self.names = [f"ftcore-{os.getpid()}-{host}" for host in "ab"]
        self.cards = [f"ft{os.getpid() % 10**6}{host}" for host in "ab"]
        for name in self.names:
            netns.create(name)
        with IPRoute() as here:
            here.link("add", ifname=self.cards[0], kind="veth", peer=self.cards[1])
            for name, card in zip(self.names, self.cards, strict=True):
                here.link("set", index=here.link_lookup(ifname=card)[0], net_ns_fd=name)
        for place, (name, card) in enumerate(zip(self.names, self.cards, strict=True), start=1):
            with NetNS(name) as host:
                index = host.link_lookup(ifname=card)[0]
                host.addr("add", index=index, address=f"10.77.0.{place}", prefixlen=24)
                for up in (index, host.link_lookup(ifname="lo")[0]):
                    host.link("set", index=up, state="up")

    def cable(self, state: str) -> None:
        """Put the cable in (``up``) or out (``down``)."""
        from pyroute2 import NetNS

        with NetNS(self.names[1]) as host:
            host.link("set", index=host.link_lookup(ifname=self.cards[1])[0], state=state)

    def start(self, place: int, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start torchrun on one of them; both see the same files."""
        ours = [f"--local-addr=10.77.0.{place + 1}", f"--rdzv-conf=is_host={1 - place}"]
        both = ["--rdzv-endpoint=10.77.0.1:29400", "--rdzv-backend=c10d", "--rdzv-id=1"]
        both += ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *both, *ours, "-m", "ftcore", *command]
        namespace = ["nsenter", f"--net=/var/run/netns/{self.names[place]}"]
        env = {**os.environ, "GLOO_SOCKET_IFNAME": self.cards[place], "OMP_NUM_THREADS": "1"}
        with log.open("wb") as file:
            return subprocess.Popen([*namespace, *torchrun], env=env, stdout=file, stderr=file)

    def remove(self) -> None:
        """Remove both, and with them the cable."""
        from pyroute2 import netns

        for name in self.names:
            netns.remove(name)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.remove()


def test_a_run_on_two_hosts_outlives_a_cable_that_is_cut(hosts: Hosts, tmp_path: Path) -> None:
    options: Any = (*STILL, "--plugin", "ddp", "--set", "train.epochs=40", "--set", "run.save_every=4 steps")
    command = [*arguments(tmp_path / "run", *options), "--set", "ddp.timeout=10"]
    logs = [tmp_path / "a", tmp_path / "b"]
    processes = [hosts.start(place, command, logs[place]) for place in range(2)]
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert [process.poll() for process in processes] == [None, None], [log.read_text() for log in logs]
        time.sleep(0.05)

    hosts.cable("down")
    time.sleep(SILENCE)
    hosts.cable("up")
    codes = [process.wait(300) for process in processes]

    said = logs[0].read_text()
    assert codes == [0, 0], said + logs[1].read_text()
    assert said.count("a process failed; all processes were restarted") >= 1
    whole = [*arguments(tmp_path / "whole", *options), "--set", "ddp.timeout=10"]
    assert run(*whole, ranks=2, log=tmp_path / "log") == [0, 0]
    assert differences(result(tmp_path / "run"), result(tmp_path / "whole")) == []
