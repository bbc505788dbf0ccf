"""Train on two nodes that share no disk and lose one on the way, all on one machine.

    sudo env PYTHONPATH=. python tests/two_nodes.py FOLDER        # both stages
    sudo env PYTHONPATH=. python tests/two_nodes.py FOLDER 2      # stage 2 alone, with an untrained image tokenizer

Each node is a network namespace with an address of its own and a folder of its own, which its launcher runs in; a veth
pair is the cable between them. Both stages are trained twice: undisturbed, and with everything on the second node
killed (SIGKILL) after a checkpoint, then started again on both with --resume. The weights at the end must be equal to
the last bit. Needs Linux, the command `ip` (package iproute2), and the right to make namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29500"
KILL_AFTER = "checkpoint-4"
LIMIT = 200  # seconds of one launch

COMMON = dict(
    dataset="pictures", num_workers=0, cpu_threads=1, mixed_precision="no", batch_size=8, max_steps=60, warmup_steps=2,
    log_every=5, validate_every=20, sample_every=0, checkpoint_every=2, ema_decay=0.9,
)  # fmt: skip
STAGE_1 = dict(
    output_dir="tokenizer", image_size=16, patch_size=4, hidden_sizes=[8, 16], codebook_sizes=[16, 12],
    num_res_blocks=1, code_dim=4, quantizer="residual",
)  # fmt: skip
STAGE_2 = dict(
    output_dir="model", image_tokenizer="tokenizer", token_cache="cache", num_layers=2, hidden_size=32,
    intermediate_size=64, num_heads=2, text_vocab_size=300,
)  # fmt: skip
CACHE = dict(dataset="pictures", image_tokenizer="tokenizer", token_cache="cache", num_workers=0, cpu_threads=1)


def flags(**options: Any) -> list[str]:
    """Options as they stand on a command line."""
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run_ip(*words: str) -> None:
    """The command `ip`. Raises CalledProcessError, with what it says in `stderr`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """Why there can be no network namespaces here, None where there can."""
    if shutil.which("ip") is None:
        return "there is no command `ip` (package iproute2)"
    name = f"tessera-try-{os.getpid()}"
    try:
        run_ip("netns", "add", name)
        run_ip("-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


@dataclass(frozen=True)
class Node:
    """A namespace, and the folder that stands for the node's disk."""

    rank: int
    name: str
    link: str
    folder: Path

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command on the node; what it prints goes into its folder's log."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.link, "TESSERA_CACHE": str(self.folder / "tessera"),
        }  # fmt: skip
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], cwd=self.folder, env=environment, text=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def launch(self, script: str, words: Sequence[str]) -> subprocess.Popen[str]:
        """`accelerate launch` of a script, as the node of this rank."""
        launcher = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "ddp.yaml"),
            "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.rank),
            "--main_process_ip", ADDRESSES[0], "--main_process_port", PORT,
        ]  # fmt: skip
        return self.start([*launcher, str(ROOT / "scripts" / script), *words])

    def kill(self) -> None:
        """SIGKILL to all processes on the node, as if its power went."""
        found = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """What its commands have printed since `forget`."""
        return (self.folder / "log.txt").read_text()

    def forget(self) -> None:
        """Begin the log anew."""
        (self.folder / "log.txt").unlink(missing_ok=True)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Two nodes with a cable between them; all that they run is killed when the block ends."""
    nodes = []
    for rank in range(2):
        (folder / f"node-{rank}").mkdir(parents=True)
        nodes.append(Node(rank, f"tessera-{os.getpid()}-{rank}", f"tsr{os.getpid()}-{rank}", folder / f"node-{rank}"))
    first, second = nodes
    try:
        for node in nodes:
            run_ip("netns", "add", node.name)
        run_ip("link", "add", first.link, "netns", first.name, "type", "veth",
               "peer", "name", second.link, "netns", second.name)  # fmt: skip
        for node, address in zip(nodes, ADDRESSES, strict=True):
            run_ip("-n", node.name, "addr", "add", f"{address}/24", "dev", node.link)
            for link in ("lo", node.link):
                run_ip("-n", node.name, "link", "set", link, "up")
        yield first, second
    finally:
        for node in nodes:
            with contextlib.suppress(subprocess.CalledProcessError):
                node.kill()
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True)


def write_pictures(folder: Path, count: int = 60) -> None:
    """Small pictures with captions in files beside them."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"picture {number}")


def wait_for(nodes: Sequence[Node], launched: Sequence[subprocess.Popen[str]]) -> None:
    """Until all have ended well. Raises RuntimeError with their logs where one has not."""
    codes = [one.wait(timeout=LIMIT) for one in launched]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}\n" + "\n".join(node.log()[-3000:] for node in nodes))


def train(nodes: Sequence[Node], script: str, words: Sequence[str]) -> None:
    """Undisturbed."""
    wait_for(nodes, [node.launch(script, words) for node in nodes])


def train_with_a_loss(nodes: Sequence[Node], script: str, words: Sequence[str], output: str) -> str:
    """The second node is killed after a checkpoint, the first one ends by itself; both are started again.

    Returns:
        the line that says where the run went on.
    """
    first, second = nodes
    launched = [node.launch(script, words) for node in nodes]
    started = time.monotonic()
    while not (first.folder / output / "checkpoints" / KILL_AFTER).is_dir():
        if time.monotonic() > started + LIMIT or any(one.poll() is not None for one in launched):
            raise RuntimeError("no checkpoint\n" + "\n".join(node.log()[-3000:] for node in nodes))
        time.sleep(0.01)
    second.kill()
    codes = [one.wait(timeout=LIMIT) for one in launched]
    if not all(codes):
        raise RuntimeError(f"the run had ended before its node was killed: exit codes {codes}")
    first.kill()  # what the launcher may have left
    first.forget()
    wait_for(nodes, [node.launch(script, [*words, "--resume"]) for node in nodes])
    return next(line for line in first.log().splitlines() if line.startswith("resumed from step"))


def same_weights(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, to the last bit."""
    ours, theirs = load_file(first), load_file(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def both_ways(nodes: Sequence[Node], script: str, words: Sequence[str], output: str, weights: str) -> str:
    """Train undisturbed and with a loss, and compare.

    Returns:
        what to print.

    Raises:
        RuntimeError: the weights differ, or the second node has a part of the run in its folder.
    """
    first, second = nodes
    train(nodes, script, words)
    kept = first.folder / f"{output}-undisturbed"
    (first.folder / output).rename(kept)
    resumed = train_with_a_loss(nodes, script, words, output)
    if (second.folder / output).exists():
        raise RuntimeError(f"the second node has written {second.folder / output}")
    if not same_weights(kept / weights, first.folder / output / weights):
        raise RuntimeError(f"{script}: the weights differ")
    return f"{script}: {resumed.strip()}; the weights at the end are those of the undisturbed run"


def main(folder: Path, stages: Sequence[int] = (1, 2)) -> None:
    """Stage 1, one token cache for each node, stage 2; or stage 2 alone."""
    with two_nodes(folder) as nodes:
        first, second = nodes
        write_pictures(first.folder / "pictures")
        shutil.copytree(first.folder / "pictures", second.folder / "pictures")
        if 1 in stages:
            words = flags(**COMMON, **STAGE_1)
            print(both_ways(nodes, "train_tokenizer.py", words, "tokenizer", "model.safetensors"), flush=True)
        else:
            tiny_tokenizer().save_pretrained(first.folder / "tokenizer")
        if 2 not in stages:
            return
        shutil.copytree(first.folder / "tokenizer", second.folder / "tokenizer")  # as a user would
        for node in nodes:
            command = [sys.executable, str(ROOT / "scripts" / "cache_tokens.py"), *flags(**CACHE)]
            wait_for([node], [node.start(command)])
        print(both_ways(nodes, "train_lm.py", flags(**COMMON, **STAGE_2), "model", "lm/model.safetensors"), flush=True)


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"two_nodes.py: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that nothing is left running
    main(Path(sys.argv[1]).absolute(), [int(number) for number in sys.argv[2:]] or (1, 2))
