"""Token caches that the workers of a Ray cluster encode, and this process writes.

Ray Data deals out tasks of a few hundred rows. What a worker answers does not depend on which one it is or on what it
has done before, so that the caches are those of one process to the last byte. Ray gives the task of a worker that has
died to another, and starts a new worker in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from lm.data.shards import Document
from pipelines.caching.pixel_cache import check_unreadable, warn_of_dark
from pipelines.caching.ray_worker import EncodingPlan, EncodingWorker, as_document
from pipelines.caching.writer import TokenCacheWriter
from pipelines.machine.processors import usable_cores
from pipelines.machine.ray_cluster import ray_cluster, workers_that_fit
from pipelines.options.data import CacheOptions
from tokenizer_image.pictures.documents import DocumentPictures
from tokenizer_image.preprocessing import preprocessing_of

MOST_BLOCKS = 4096  # of tasks: what Ray deals out, and does again after a worker's death


@dataclass(frozen=True)
class RayWorkers:
    """What a cluster is asked for.

    Attributes:
        address: of the cluster; None starts one on this machine.
        number: of workers; None: as many as there is room for.
        cores, gpus: of each.
        threads: of PyTorch in each.
        device: where each encodes.
    """

    address: str | None
    number: int | None
    cores: int
    gpus: float
    threads: int
    device: str


@dataclass(frozen=True)
class CacheToWrite:
    """A token cache, and the shards of it that are to be written.

    Attributes:
        split, view: whose pictures; view 0 are the plain ones, others count `views_of` from 1.
    """

    split: str
    view: int
    writer: TokenCacheWriter
    shards: Sequence[int]


@dataclass
class _Told:
    """What workers have said of the pictures of one cache so far."""

    unreadable: dict[str, str] = field(default_factory=dict)
    num_read: int = 0
    dark: int = 0


@dataclass(frozen=True)
class _Task:
    """Batches of rows of one shard, by their bounds; `number` counts all tasks."""

    number: int
    cache: int
    shard: int
    bounds: tuple[int, ...]


def encode_on_ray(options: CacheOptions, caches: Sequence[CacheToWrite], workers: RayWorkers) -> None:
    """Write the shards of some token caches that are missing, with a progress bar. Whole shards stay when it is
    interrupted.

    Raises:
        ValueError: more than --max_unreadable_share of the pictures cannot be read; the cluster cannot be reached, or
            has no room for a worker, or its workers see another data set.
    """
    tasks = _tasks(caches)
    plan = EncodingPlan(
        CacheOptions(**{name: getattr(options, name) for name in CacheOptions.__dataclass_fields__}),
        {(cache.split, cache.view): str(cache.writer.folder.absolute()) for cache in caches},
        {cache.split: cache.writer.source.fingerprint for cache in caches},
        caches[0].writer.shard_rows,
        workers.threads,
        workers.device,
    )
    rows = [{"task": task.number, "split": caches[task.cache].split, "view": caches[task.cache].view,
             "bounds": list(task.bounds)} for task in tasks]  # fmt: skip
    local_cores = workers.number * workers.cores if workers.number else usable_cores()
    with ray_cluster(workers.address, local_cores):
        number = workers.number or workers_that_fit(workers.cores, workers.gpus)
        _write_shards(options, caches, tasks, _answers(rows, plan, workers, number))


def _tasks(caches: Sequence[CacheToWrite]) -> list[_Task]:
    """A task for each batch of rows; for interleaved documents, which may share pictures, one for each shard."""
    tasks: list[_Task] = []
    for cache, asked in enumerate(caches):
        for shard in asked.shards:
            batches = asked.writer.row_batches(shard)
            together = len(batches) if isinstance(asked.writer.source, DocumentPictures) else 1
            for first in range(0, len(batches), together):
                part = batches[first : first + together]
                tasks.append(_Task(len(tasks), cache, shard, (part[0][0], *(end for _, end in part))))
    return tasks


def _answers(
    rows: list[dict[str, Any]], plan: EncodingPlan, workers: RayWorkers, number: int
) -> Iterator[dict[str, Any]]:
    """What the workers answer to the tasks, in any order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    blocks = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    answers = blocks.map_batches(
        EncodingWorker,
        fn_constructor_args=[plan],
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(number, len(rows))),
        num_cpus=workers.cores,
        num_gpus=workers.gpus or None,
    )  # by default, Ray Data starts a worker that dies again, and gives its task out again, as often as it takes
    tables: Iterable[Any] = answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for table in tables:
        yield from table.to_pylist()


def _write_shards(
    options: CacheOptions, caches: Sequence[CacheToWrite], tasks: Sequence[_Task], answers: Iterator[dict[str, Any]]
) -> None:
    """Write each shard as soon as all of its rows are there."""
    waiting: dict[tuple[int, int], dict[int, list[Document] | None]] = {}
    for task in tasks:
        waiting.setdefault((task.cache, task.shard), {})[task.number] = None
    told = [_Told() for _ in caches]
    for cache in caches:
        cache.writer.reused = cache.writer.num_new = 0
    total = sum(task.bounds[-1] - task.bounds[0] for task in tasks)
    with tqdm(total=total, desc="encoding pictures", unit="row") as bar:
        for answer in answers:
            if answer["problem"]:
                raise ValueError(answer["problem"])
            task = tasks[answer["task"]]
            writer, shard = caches[task.cache].writer, waiting[task.cache, task.shard]
            _count(options, writer, told[task.cache], answer)
            num_codes = writer.tokenizer.num_codes
            shard[task.number] = [as_document(row, num_codes) for row in answer["documents"]]
            if None not in shard.values():
                parts = [part for _, part in sorted(shard.items()) if part is not None]
                writer.write_documents(task.shard, [document for part in parts for document in part])
                del waiting[task.cache, task.shard]
            bar.update(task.bounds[-1] - task.bounds[0])
    for cache, said in zip(caches, told, strict=True):
        check_unreadable(
            sorted(said.unreadable.items()), said.num_read + cache.writer.reused, cache.writer.source,
            options.max_unreadable_share,
        )  # fmt: skip
        warn_of_dark(said.dark, preprocessing_of(cache.writer.tokenizer), cache.writer.source)


def _count(options: CacheOptions, writer: TokenCacheWriter, told: _Told, answer: dict[str, Any]) -> None:
    """Add an answer's figures. Raises ValueError as soon as too many pictures cannot be read."""
    told.unreadable.update(dict(answer["unreadable"]))
    told.num_read += answer["num_read"]
    told.dark += answer["dark"]
    writer.reused += answer["reused"]
    writer.num_new += answer["num_new"]
    if told.num_read:  # while none is read yet, others may follow
        check_unreadable(
            sorted(told.unreadable.items()), told.num_read, writer.source, options.max_unreadable_share, progress=False
        )
