"""accelerate_configs/slurm.sbatch under Slurm itself, two nodes on this machine: a time limit, a requeue, a lost node."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import patient
from runs import assert_same_tensors, lines, newest, status

import cifar100_tk

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # Slurm counts time limits in minutes.

NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
SBATCH = Path(cifar100_tk.__file__).parent.parent / "accelerate_configs" / "slurm.sbatch"
SETTINGS = """
ClusterName=cifar100tk
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=27817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdTimeout=120
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27818 CPUs=4 RealMemory=1000
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=27819 CPUs=4 RealMemory=1000
PartitionName=main Nodes=node1,node2 Default=YES State=UP
"""
RECIPE = """
import dataclasses
import os
import time

from runs import TINY

from cifar100_tk.training.state import TrainState
from cifar100_tk.train import main

recipe = dataclasses.replace(TINY, epochs=8)  # 40 steps.
if "SLOWLY" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    set_lr = TrainState.set_lr  # Called once a step.

    def slow(*arguments):
        time.sleep(4)
        set_lr(*arguments)

    TrainState.set_lr = slow

if __name__ == "__main__":
    main(recipe)
"""


class Cluster:
    """Slurm's daemons and what a test asks of them. Each node has its own process ids, as another machine would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{Path(__file__).parents[2] / 'support'}:{SBATCH.parent.parent}",
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename} {' '.join(NODES)}\n")
        (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder, host=os.uname().nodename))
        (folder / "recipe.py").write_text(RECIPE)
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
        self.call("munged", "--force", *(f"--{name}={folder / file}" for name, file in files.items()))
        self.call("slurmctld", "-i")
        for node in NODES:
            self.start(node)
        self.until(lambda: self.call("sinfo", "-h", "-o", "%T") == "idle\n", 60, "both nodes are idle")

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def start(self, node: str) -> None:
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -D -N {node}"
        words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", inside]
        self.nodes[node] = subprocess.Popen(words, env=self.environment, stderr=subprocess.DEVNULL)

    def lose(self, node: str) -> None:
        """End a node with all that runs on it, at once: its slurmd is the first process of its namespace."""
        for child in psutil.Process(self.nodes[node].pid).children():
            child.kill()
        self.nodes[node].wait(timeout=30)

    def submit(self, run_folder: Path, *options: str, **environment: str) -> str:
        """Submit the script as it is shipped, with sizes for this machine. Returns the number of the job."""
        small = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={run_folder}.out"]
        exports = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])
        recipe = [
            str(self.folder / "recipe.py"),
            "--output-dir",
            str(run_folder),
            "--threads",
            "1",
            "--checkpoint-every",
            "1",
        ]
        words = ["sbatch", "--parsable", f"--export={exports}", *small, *options, str(SBATCH), *recipe]
        return self.call(*words).strip()

    def state(self, job: str) -> str:
        """Return the state of a job and how often it was requeued, such as `RUNNING 1`."""
        shown = self.call("scontrol", "show", "job", job)
        return " ".join(re.findall(r"(?:JobState|Restarts)=(\w+)", shown))

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + patient(seconds)
        while not condition():
            if time.monotonic() > end:
                said = "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.out")))
                pytest.fail(f"waited {seconds:g} s or more until {what}:\n{self.call('squeue')}\n{said}")
            time.sleep(0.5)

    def stop(self) -> None:
        for node in NODES:
            if node in self.nodes and self.nodes[node].poll() is None:
                self.lose(node)
        for name in ("slurmctld", "munged"):
            pid_file = self.folder / f"{name}.pid"
            if pid_file.exists():
                process = psutil.Process(int(pid_file.read_text()))
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"no {', '.join(missing)} here; on Debian: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("a cluster with namespaces of its own needs root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # The path of a socket must be short.
        made = Cluster.__new__(Cluster)
        try:
            made.__init__(Path(folder))  # type: ignore[misc]
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> Path:
    """The run that nothing interrupts."""
    path = cluster.folder / "whole"
    job = cluster.submit(path)
    cluster.until(lambda: cluster.state(job).startswith(("COMPLETED", "FAILED")), 120, "the whole run is done")
    assert cluster.state(job) == "COMPLETED 0" and status(path)["status"] == "finished"
    return path


def assert_same_run(path: Path, whole: Path) -> None:
    assert newest(path).step == newest(whole).step == 40 and status(path)["status"] == "finished"
    assert_same_tensors(newest(path), newest(whole))
    assert lines(path) == lines(whole)


def test_a_job_is_signalled_before_its_limit_saves_is_requeued_and_finishes(cluster: Cluster, whole: Path) -> None:
    path = cluster.folder / "limited"
    job = cluster.submit(path, "--time=2", "--signal=USR1@60", SLOWLY="1")
    cluster.until(lambda: cluster.state(job).startswith(("COMPLETED", "FAILED", "TIMEOUT")), 300, "the job is done")
    said = Path(f"{path}.out").read_text()
    assert cluster.state(job) == "COMPLETED 1", said
    assert len(re.findall(r"stopped by SIGUSR1 after step \d+, everything is saved", said)) == 2, said
    assert_same_run(path, whole)


def test_a_lost_node_ends_the_job_with_a_sentence_and_the_requeued_job_finishes(cluster: Cluster, whole: Path) -> None:
    path = cluster.folder / "lost"
    job = cluster.submit(path, SLOWLY="1")
    cluster.until(lambda: any((path / "checkpoints").glob("step-*")), 180, "a checkpoint is there")
    cluster.lose("node2")
    cluster.until(lambda: cluster.state(job).split()[0] != "RUNNING", 300, "the job has ended")
    said = Path(f"{path}.out").read_text()
    assert "rank 0 ends because another process stopped responding" in said
    cluster.start("node2")
    cluster.until(lambda: cluster.state(job).startswith(("COMPLETED", "FAILED")), 180, "the job is done")
    assert cluster.state(job) == "COMPLETED 1"
    assert_same_run(path, whole)
