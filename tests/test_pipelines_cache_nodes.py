"""A token cache that several nodes build: each node's own disk holds the pictures that it decodes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from lm.data.token_cache import TokenCache
from pipelines.caching import pixel_cache
from pipelines.caching.opening import open_caches
from pipelines.options.data import CacheOptions
from tokenizer_image import VQVAE, VQVAEConfig
from tokenizer_image.pictures.loading import Preprocessing
from tokenizer_image.registry import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def test_each_node_decodes_pictures_once(tmp_path):
    """Two nodes of two processes, which share the token cache but not $TESSERA_CACHE."""
    settings = {"hidden_sizes": [8], "num_res_blocks": 1, "code_dim": 4, "codebook_sizes": [20]}
    preprocessing = Preprocessing(image_size=8).to_dict()
    VQVAE(VQVAEConfig(image_size=8, preprocessing=preprocessing, **settings)).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02d}.png")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    nodes = []
    for rank in range(2):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
            "TESSERA_CACHE": str(tmp_path / f"node-{rank}"),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2",
            "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", str(port), __file__, str(tmp_path),
        ]  # fmt: skip
        nodes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [node.communicate(timeout=240)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    for rank in range(2):
        decoded = (tmp_path / f"node-{rank}" / "decoded").read_text().split()
        assert decoded == ["38", "2"], "each split once, by one process of the node"
    assert [len(TokenCache(tmp_path / "cache" / split)) for split in ("train", "validation")] == [38, 2]


def open_on_a_node(folder: str) -> None:
    """What each process runs: it opens the caches and writes down which pictures it decodes."""
    original = pixel_cache.decode_all

    def decode_all(source, *rest):
        with (Path(os.environ["TESSERA_CACHE"]) / "decoded").open("a") as file:
            file.write(f"{len(source)}\n")
        return original(source, *rest)

    pixel_cache.decode_all = decode_all
    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    options = CacheOptions(dataset=f"{folder}/pictures", image_tokenizer=f"{folder}/tokenizer", num_workers=0)
    open_caches(options, tokenizer, Accelerator(), root=f"{folder}/cache")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    open_on_a_node(sys.argv[1])
