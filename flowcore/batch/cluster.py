"""A batch on many machines: a Ray cluster, through Ray Data (``pip install .[ray]``).

    paths of pictures -> workers, which read them, each with the model in memory -> results, saved by this program

Every machine needs flowcore and Ray, and sees the pictures under the same path. Ray's ports are open on all interfaces.
"""

import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import FlowError, printable
from ..images import files
from ..models import catalog, load
from .folders import Job, Outputs, save
from .job import JobSpec, Result, Worker

MAX_BLOCKS = 4096  # blocks per run: one for each picture, unless there are more pictures
SHARED_MEMORY = 2**29  # bytes for pictures in transit, of a cluster that is started here


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where to run, and which model every worker loads; results are those of one process with a worker's threads."""

    model: str  # name of a shipped model, or a file
    device: str = "cpu"  # each worker's device
    overrides: dict[str, Any] = field(default_factory=dict[str, Any])  # see ``models.load``
    address: str | None = None  # a running cluster, "auto" for the one of this machine; None starts one
    workers: int | None = None  # each with its own copy of the model; None for as many as CPUs, or GPUs, allow
    threads: int = 1  # threads per worker


class _RayWorker:
    """A worker on some machine: rows of pictures in, rows of results out."""

    def __init__(self, spec: JobSpec, cluster: Cluster, file: Any) -> None:
        torch.set_num_threads(cluster.threads)
        with tempfile.TemporaryDirectory() as folder:
            name = cluster.model
            if file is not None:
                path = Path(folder) / Path(name).name
                path.write_bytes(import_ray().get(file))
                name = str(path)
            self._worker = Worker(spec, load(name, cluster.device, **cluster.overrides))

    def __call__(self, batch: Any) -> Any:
        rows: list[dict[str, Any]] = []
        for row in batch.to_pylist():
            path, start, notes = Path(os.fsdecode(row["path"])), time.monotonic(), list[str]()
            results, problem = list[Result](), ""
            try:
                results = self._worker(files.read_bytes(path), path.name, notify=notes.append)
            except Exception as error:  # one picture does not stop the others
                problem = f"{error}" if isinstance(error, FlowError) else f"{type(error).__name__}: {error}"
            made = {"results": [each.content for each in results], "seeds": [each.seed for each in results]}
            outcome = {**made, "error": printable(problem), "notes": [*map(printable, notes)]}
            rows.append({"number": row["number"], **outcome, "seconds": time.monotonic() - start})
        import pyarrow as arrow  # pyright: ignore[reportMissingImports]

        types = {
            "number": arrow.int64(),
            "results": arrow.list_(arrow.large_binary()),  # numpy arrays of bytes would lose trailing zeros
            "seeds": arrow.list_(arrow.uint64()),
            "error": arrow.string(),
            "notes": arrow.list_(arrow.string()),
            "seconds": arrow.float64(),
        }
        return arrow.table({name: arrow.array([row[name] for row in rows], kind) for name, kind in types.items()})


def execute(
    spec: JobSpec, cluster: Cluster, notify: Callable[[str], None], jobs: Sequence[Job]
) -> Iterator[tuple[Job, Outputs | Exception]]:
    """Execute jobs on a cluster, and save and yield each when it is finished."""
    with _running(cluster) as ray:
        file = None if cluster.model in catalog.names() else ray.put(Path(cluster.model).expanduser().read_bytes())
        left = dict(enumerate(jobs))
        for row in _rows(ray, spec, cluster, file, jobs):
            job = left.pop(row["number"])
            for note in row["notes"]:
                notify(f"{job.source.name}: {note}")
            if row["error"]:
                yield job, FlowError(row["error"])
            else:
                yield job, save(job, Outputs(row["results"], row["seconds"], tuple(row["notes"]), tuple(row["seeds"])))
        for job in left.values():
            yield job, FlowError("Its worker died; it may need more memory than there is.")


def _rows(ray: Any, spec: JobSpec, cluster: Cluster, file: Any, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    gpu = cluster.device.startswith("cuda")
    resources = ray.cluster_resources()
    available = int(resources.get("GPU", 0)) if gpu else int(resources.get("CPU", 1)) // cluster.threads
    workers = max(1, min(cluster.workers or available, len(jobs)))
    items = [{"number": number, "path": os.fsencode(job.source.absolute())} for number, job in enumerate(jobs)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a picture that kills its worker does not stop the others
    pictures = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns about its execution plan
        results = pictures.map_batches(
            _RayWorker,
            fn_constructor_args=(spec, cluster, file),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=0 if gpu else cluster.threads,
            num_gpus=1 if gpu else 0,
            max_task_retries=0,  # a picture that kills its worker would do so again
        )
    try:
        for batch in results.iter_batches(batch_size=1, batch_format="pyarrow"):
            yield from batch.to_pylist()
    except Exception as error:  # Ray raises many types
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else type(error).__name__
        raise FlowError(f"The cluster failed: {reason} Check that flowcore runs on every machine.") from error


@contextmanager
def _running(cluster: Cluster) -> Generator[Any]:
    """Join a cluster, or start one that ends with the block."""
    ray = import_ray()
    if ray.is_initialized():  # the calling program did it
        yield ray
        return
    host, colon, port = (cluster.address or "").rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():  # look whether it answers: Ray itself would wait for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise FlowError(
                f"Nothing answers at {cluster.address}: {error}. Start a cluster with `ray start --head`, and use the "
                "address that it prints."
            ) from error
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        cpus = (cluster.workers or 0) * cluster.threads or os.cpu_count() or 1
        options |= {"address": "local", "num_cpus": cpus, "object_store_memory": SHARED_MEMORY}
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {cluster.address}" if cluster.address else "of our own"
        raise FlowError(f"There is no Ray cluster {where}: {error} Start one with `ray start --head`.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """Import Ray, quietly; FlowError if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report usage statistics
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise FlowError(
            f"Working on many machines needs Ray ({error}). Install it beside flowcore: pip install 'ray[data]'; or "
            "run without --ray."
        ) from error
    for name in ("ray", "ray.data"):  # failures are reported by us
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray
