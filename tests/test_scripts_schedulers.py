"""configs/ for SLURM, SkyPilot and Kubernetes: valid by the tools' own rules, and built on SIGTERM and --resume."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.options.language_model import LanguageModelOptions
from pipelines.options.parser import parse_options

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SBATCH = CONFIGS / "slurm.sbatch"


def options_of(words: list[str]) -> LanguageModelOptions:
    """The options of a command line of scripts/train_lm.py, checked as by the script."""
    start = next(index for index, word in enumerate(words) if word.endswith("train_lm.py"))
    return parse_options(LanguageModelOptions, description=None, argv=words[start + 1 :])


# Kubernetes


def test_kubernetes_accepts_the_job():
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate has the API's schemas")
    job = yaml.safe_load((CONFIGS / "kubernetes.yaml").read_text())
    latest = validator.latest_version()
    validator.validate(job, latest, strict=True)
    for path, value in ((("spec", "backoffLimit"), "many"), (("spec", "template", "spec", "restart"), "Never")):
        wrong = yaml.safe_load((CONFIGS / "kubernetes.yaml").read_text())
        place = wrong
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        with pytest.raises(validator.ValidationError):
            validator.validate(wrong, latest, strict=True)


def test_the_pod_gets_the_signal_and_goes_on():
    job = yaml.safe_load((CONFIGS / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy needs it"
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert container["command"][0] == "python", "the first process gets the signal"
    options = options_of(container["command"] + container["args"])
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert options.resume and options.output_dir.startswith(mounted[pod["volumes"][0]["name"]])
    failing = job["spec"]["podFailurePolicy"]["rules"][0]
    assert failing["action"] == "FailJob" and failing["onExitCodes"]["containerName"] == container["name"]
    assert 143 not in failing["onExitCodes"]["values"]


# SkyPilot


def test_skypilot_file():
    """Its own package does not install beside ours (older click and uvicorn): the names and types that it documents."""
    task = yaml.safe_load((CONFIGS / "skypilot.yaml").read_text())
    known = {"name", "resources", "num_nodes", "workdir", "file_mounts", "envs", "secrets", "setup", "run", "service"}
    assert set(task) <= known
    resources = task["resources"]
    assert resources["use_spot"] is True and resources["job_recovery"] == {"recover_on_exit_codes": [143]}
    assert all(isinstance(count, int) for count in resources["accelerators"].values())
    ((mount, bucket),) = task["file_mounts"].items()
    assert set(bucket) == {"name", "mode"} and bucket["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True)
    words = shlex.split(task["run"].replace("\\\n", " "))
    assert words[:2] == ["exec", ".venv/bin/python"], "no shell between the signal and the training"
    options = options_of(words)
    assert options.resume and options.output_dir.startswith(mount)


# SLURM: the script itself, with stand-ins for the programs of a cluster

SCONTROL = """#!/bin/bash
case "$1" in
    show) printf 'node1\\nnode2\\n' ;;
    requeue) echo "$2" >>requeued ;;
esac
"""
SRUN = f"""#!{sys.executable}
# As srun: passes SIGTERM on to its task, and ends with its exit code.
import os, signal, subprocess, sys
task = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: task.send_signal(signal.SIGTERM))
code = task.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
ACCELERATE = f"""#!{sys.executable}
# As a training: writes down its arguments, ends with the code in a file, or on SIGTERM with a checkpoint and 143.
import os, signal, sys, time
def end(*_):
    open("checkpoint", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open("arguments", "w").write("\\n".join(sys.argv[1:]))
if os.path.exists("code"):
    sys.exit(int(open("code").read()))
time.sleep(60)
"""


def cluster(folder: Path) -> dict[str, str]:
    """The environment of a job, whose programs are those above."""
    (folder / "bin").mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("accelerate", ACCELERATE)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    slurm = {"JOB_ID": "17", "JOB_NODELIST": "node[1-2]", "NNODES": "2", "NODEID": "1"}
    return {**os.environ, "PATH": path, **{f"SLURM_{name}": value for name, value in slurm.items()}}


def test_slurm_goes_on_after_its_time_was_up(tmp_path):
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    job = subprocess.Popen(["bash", str(SBATCH)], cwd=tmp_path, env=cluster(tmp_path))
    arguments = tmp_path / "arguments"
    for _ in range(300):
        if arguments.exists() and arguments.read_text():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 143
    assert (tmp_path / "checkpoint").exists() and (tmp_path / "requeued").read_text() == "17\n"
    words = arguments.read_text().split("\n")
    given = dict(zip(words, words[1:], strict=False))
    assert given["--main_process_ip"] == "node1" and given["--machine_rank"] == "1" and given["--num_machines"] == "2"
    assert Path(ROOT / given["--config_file"]).is_file() and options_of(words).resume


@pytest.mark.parametrize("code", [0, 1])
def test_slurm_ends_with_the_training(tmp_path, code):
    (tmp_path / "code").write_text(str(code))
    done = subprocess.run(["bash", str(SBATCH)], cwd=tmp_path, env=cluster(tmp_path), timeout=30)
    assert done.returncode == code and not (tmp_path / "requeued").exists()


def test_slurm_asks_for_the_signal_in_its_shell():
    asked = " ".join(line.removeprefix("#SBATCH") for line in SBATCH.read_text().splitlines() if "#SBATCH" in line[:7])
    options = dict(word.removeprefix("--").partition("=")[::2] for word in asked.split())
    assert options["signal"].startswith("B:TERM@") and "requeue" in options
    assert int(options["nodes"]) * int(options["gpus-per-node"]) == 16 and "--num_processes 16" in SBATCH.read_text()
