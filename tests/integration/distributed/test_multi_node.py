"""Two hosts with addresses of their own, in network namespaces of this machine: one run across both, as on one host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PROGRAMS, start, torchrun, wait
from runs import assert_same_tensors, lines, newest, status

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # Starts five programs that import torch.

HOSTS = {"cifar100tk-a": "10.213.7.1", "cifar100tk-b": "10.213.7.2"}


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable; skips where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command of iproute2")
    first, second = HOSTS
    try:
        for host in HOSTS:
            made = ip("netns", "add", host)
            if made.returncode:
                pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
        made = ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        if made.returncode:
            pytest.skip(f"two namespaces cannot be joined here: {made.stderr.strip()}")
        for host, address in HOSTS.items():
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                assert not ip("-n", host, *words).returncode
            ip("-n", host, "link", "set", "lo", "up")
        yield list(HOSTS)
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def test_two_hosts_train_what_two_processes_of_one_host_train(tmp_path: Path, hosts: list[str]) -> None:
    script = PROGRAMS / "train_on_two_hosts.py"
    address = HOSTS[hosts[0]]
    # A host sees its own address and not the other's: they are two.
    seen = [ip("-n", host, "-br", "addr", "show", "eth0").stdout for host in hosts]
    assert [own in text for own in HOSTS.values() for text in seen] == [True, False, False, True]
    # As the README says for two CPU machines.
    static = ["--nnodes=2", "--nproc_per_node=1", f"--master_addr={address}", "--master_port=29512"]
    environment = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0"}
    across = [
        start(
            [*static, f"--node_rank={rank}"],
            script,
            tmp_path / "across",
            inside=["ip", "netns", "exec", host],
            **environment,
        )
        for rank, host in enumerate(hosts)
    ]
    first, second = (wait(process, 100) for process in across)
    assert first.returncode == second.returncode == 0, first.stderr[-2000:] + second.stderr[-2000:]
    # Only the first host's process prints, and writes the run folder.
    assert "2 processes" in first.stdout and "20 = 2 x 10" in first.stdout and "epoch" not in second.stdout
    one_host = torchrun(script, tmp_path / "here", ACCELERATE_USE_CPU="true")
    assert one_host.returncode == 0, one_host.stderr[-2000:]
    ours, theirs = newest(tmp_path / "across"), newest(tmp_path / "here")
    assert ours.step == theirs.step == 10 and status(tmp_path / "across")["status"] == "finished"
    assert_same_tensors(ours, theirs)  # To the bit.
    assert lines(tmp_path / "across") == lines(tmp_path / "here")
