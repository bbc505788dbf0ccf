"""The fuzzing of `test_tokenizer_fuzz.py` led by coverage, which finds what random folders do not reach.

    pip install atheris
    python tests/fuzz_pictures.py 10000

runs so many folders, and ends at the first that is neither loaded nor refused with the name of a file; more than 10
seconds, or 1 GB beyond what the libraries take, count as such. Further arguments are libFuzzer's, such as a folder for
the inputs that reach new code.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tokenizer_image.pictures"], enable_loader_override=False):
    from test_tokenizer_fuzz import check_folder, folders

import datasets
from hypothesis import HealthCheck, given, settings


def main() -> None:
    if len(sys.argv) < 2 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    datasets.disable_progress_bars()
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    with tempfile.TemporaryDirectory() as temporary:
        datasets.config.HF_DATASETS_CACHE = f"{temporary}/cache"
        settings(max_examples=50, **quiet)(given(folders)(check_folder))()  # loads every library
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MB
        seeds = Path(temporary) / "seeds"
        seeds.mkdir()
        for number in range(64):  # hypothesis draws a folder from a few thousand bytes; shorter ones are no input
            (seeds / str(number)).write_bytes(random.Random(number).randbytes(4096))
        limits = ["-timeout=10", f"-rss_limit_mb={used + 1024}", "-max_len=8192", "-len_control=0"]
        inputs = [argument for argument in sys.argv[2:] if not argument.startswith("-")]
        others = [argument for argument in sys.argv[2:] if argument.startswith("-")]
        check = settings(**quiet)(given(folders)(check_folder)).hypothesis.fuzz_one_input
        atheris.Setup([sys.argv[0], f"-runs={sys.argv[1]}", *limits, *others, *inputs, str(seeds)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
