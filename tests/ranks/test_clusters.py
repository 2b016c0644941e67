"""What `contrib/clusters` has for Slurm and Kubernetes is carried out, with processes for their tasks and pods."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from .starting import free_port

CLUSTERS = Path(__file__).parents[2] / "contrib" / "clusters"
BIN = Path(sys.executable).parent
CONFIG = """
[model]
name = "digits/cnn"
[data]
source = "digits:5-6"
[train]
epochs = 2
"""
SRUN = """#!/bin/bash
# Two tasks, as a step of Slurm: its own variables for each, and the highest exit code of all.
for task in 0 1; do
    SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NODELIST=localhost "$@" &
    tasks+=($!)
done
code=0
for pid in "${tasks[@]}"; do wait "$pid" || code=$(( $? > code ? $? : code )); done
exit $code
"""


def bare() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    return {**mine, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_script_for_slurm_trains_and_a_requeued_job_goes_on(tmp_path: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" > requeued\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "config.toml").write_text(CONFIG)
    env = {**bare(), "SLURM_JOB_ID": "12", "MASTER_PORT": str(free_port())}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    command = ["bash", str(CLUSTERS / "slurm.sh")]

    first, again = (
        subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
        for _ in range(2)
    )

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stderr.count("DDP over 2 processes (gloo)") == 1
    assert re.search(r"^resumed +after step", again.stderr, re.MULTILINE)
    assert json.loads((tmp_path / "runs" / "12" / "manifest.json").read_text())["machine"]["processes"] == 2
    assert not (tmp_path / "requeued").exists()


def pods() -> list[dict[str, Any]]:
    """The containers of all replicas, in the order of their ranks."""
    job = yaml.safe_load((CLUSTERS / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"]
    found = []
    for replica in replicas.values():
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        volumes = {volume["name"] for volume in replica["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        found += [container] * replica["replicas"]
    return found


@pytest.mark.slow
def test_the_manifest_for_kubernetes_trains(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    containers, port, processes = pods(), free_port(), []
    for rank, container in enumerate(containers):
        env = bare() | {variable["name"]: variable["value"] for variable in container["env"]}
        operator = {"RANK": rank, "WORLD_SIZE": len(containers), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        env |= {name: str(value) for name, value in operator.items()}
        env["RUN"] = str(tmp_path / "run")  # for the volume that is mounted at /runs
        process = subprocess.Popen(container["command"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        processes.append(process)

    said = [process.communicate(timeout=200)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, 0], said
    assert said[0].count("DDP over 4 processes (gloo)") == 1
    assert said[1:] == ["", "", ""]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
