"""Two hosts with addresses of their own, in network namespaces of this machine: one run across both, as on one host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import assert_same_tensors, lines, newest, status

import cifar100_tk

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # Starts five programs that import torch.

HOSTS = {"cifar100tk-a": "10.213.7.1", "cifar100tk-b": "10.213.7.2"}
SCRIPT = """
from pathlib import Path
import sys
from runs import TINY, run
from cifar100_tk.launch import start_accelerator

accelerator = start_accelerator(Path("unused"))
assert accelerator.num_processes == 2
run(Path(sys.argv[1]), TINY, threads=1)  # Else each host has more cores for its one process.
"""


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


def torchrun(*words: str, host: str | None = None) -> subprocess.Popen[str]:
    """Start the README's command for two CPU machines, on one of the hosts."""
    inside = ["ip", "netns", "exec", host] if host else []
    paths = [str(Path(__file__).parent), str(Path(cifar100_tk.__file__).parent.parent)]
    settings = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    settings |= {"GLOO_SOCKET_IFNAME": "eth0"} if host else {}
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_hosts_train_what_two_processes_of_one_host_train(tmp_path: Path, hosts: list[str]) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    address = HOSTS[hosts[0]]
    # A host sees its own address and not the other's: they are two.
    seen = [ip("-n", host, "-br", "addr", "show", "eth0").stdout for host in hosts]
    assert [own in text for own in HOSTS.values() for text in seen] == [True, False, False, True]
    static = ["--nnodes=2", "--nproc_per_node=1", f"--master_addr={address}", "--master_port=29512"]
    across = [
        torchrun(*static, f"--node_rank={rank}", str(tmp_path / "script.py"), str(tmp_path / "across"), host=host)
        for rank, host in enumerate(hosts)
    ]
    try:
        said = [process.communicate(timeout=150)[0] for process in across]
    finally:
        for process in across:
            process.terminate()
            process.wait(timeout=60)
    assert [process.returncode for process in across] == [0, 0], "\n".join(text[-2000:] for text in said)
    # Only the first host's process prints, and writes the run folder.
    assert "2 processes" in said[0] and "20 = 2 x 10" in said[0] and "epoch" not in said[1]
    one_host = torchrun("--standalone", "--nproc_per_node=2", str(tmp_path / "script.py"), str(tmp_path / "here"))
    try:
        text = one_host.communicate(timeout=150)[0]
    finally:
        one_host.terminate()
        one_host.wait(timeout=60)
    assert one_host.returncode == 0, text[-2000:]
    ours, theirs = newest(tmp_path / "across"), newest(tmp_path / "here")
    assert ours.step == theirs.step == 10 and status(tmp_path / "across")["status"] == "finished"
    assert_same_tensors(ours, theirs)  # To the bit.
    assert lines(tmp_path / "across") == lines(tmp_path / "here")
