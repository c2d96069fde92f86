"""Report on one GPU: its limits, how close flowcore comes to them, and whether results are correct.

    python -m benchmarks.gpu -o DIR [--device cuda] [--quick]

Writes gpu.md and gpu.json to DIR after every part. The parts are the device's measured limits (for the roofline), a 4x
enlargement to one megapixel by a network of the published size, compared with targets, and the errors of every
precision of the shipped models against float64 on the CPU. ``pytest tests/core -m gpu`` runs the GPU tests.
``--device cpu --quick`` is a dry run with meaningless numbers.
"""

import statistics
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flowcore
from flowcore import device as devices
from flowcore.engine.compiled import CompiledFlow

from . import published
from .measure import Settings, Table, arguments, machine, picture, say, seconds, write
from .precision import MODELS, computed
from .srflow import SMALL, multiply_adds

TARGETS = {1: 100.0, 8: 160.0}  # ms by samples, on an H100 in reduced precision
TEMPERATURE = 0.9
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOT = Path(__file__).parents[1]
PICTURES = [ROOT / "workflows" / name for name in ("photo.png", "alps.jpg")]


def main() -> None:
    """Measure, write and print."""
    parser = arguments(__doc__, "gpu")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--rounds", type=int, default=10, help="runs of everything; medians are reported; default 10")
    parser.add_argument("--quick", action="store_true", help="small networks and pictures, once")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("There is no CUDA device here. --device cpu --quick shows that the report is made.")
    settings = Settings(
        pairs=1 if options.quick else options.rounds,
        threads=torch.get_num_threads(),
        device=options.device,
        quick=options.quick,
        lr=16 if options.quick else 256,
        samples=(1, 2) if options.quick else (1, 8),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    tables: list[Table] = []
    for part in (lambda: limits(settings), lambda: decodes(settings, tables[0]), lambda: errors(settings)):
        tables.append(part())
        say(tables[-1].markdown())
        write(options.out / "gpu", machine(settings) | _gpu(settings.device), settings, tables)
    sys.stdout.write(f"{options.out / 'gpu.md'}\n")


def precisions(device: str) -> list[str]:
    """Precisions that differ on a device."""
    return [p for p in DTYPES if devices.actual_precision(cast(Any, p), torch.device(device)) == p]


# --- what the device can do -------------------------------------------------------------------------------------------


def limits(settings: Settings) -> Table:
    """Measure the device's peak computation and bandwidth."""
    side, grid = (128, 16) if settings.quick else (8192, 512)
    source = torch.zeros(2**20 if settings.quick else 2**28, device=settings.device)
    target = torch.empty_like(source)
    bandwidth = 2 * 4 * len(source) / _median(lambda: target.copy_(source), settings)
    rows: list[dict[str, Any]] = []
    for precision in precisions(settings.device):
        dtype = DTYPES[precision]
        a = torch.ones(side, side, dtype=dtype, device=settings.device)
        x = torch.ones(1, 64, grid, grid, dtype=dtype, device=settings.device).to(memory_format=torch.channels_last)
        w = torch.ones(64, 64, 3, 3, dtype=dtype, device=settings.device).to(memory_format=torch.channels_last)
        with devices.float32_arithmetic(tf32_convolutions=precision == "tf32"):
            taken = _median(lambda x=x, w=w: torch.conv2d(x, w, padding=1), settings)
            if precision == "tf32" and settings.device.startswith("cuda"):
                torch.set_float32_matmul_precision("high")  # restored at the end of the context
            products = _median(lambda a=a: a @ a, settings)
        rows.append(
            {
                "precision": precision,
                "matrix products, TFLOP/s": 2 * side**3 / products / 1e12,
                "3x3 convolution of 64 channels, TFLOP/s": 2 * 9 * 64 * 64 * grid**2 / taken / 1e12,
                "copy, GB/s": bandwidth / 1e9,
            }
        )
    notes = [f"Matrices of {side}x{side}; images of {grid}x{grid}; a copy reads and writes."]
    return Table(subject="gpu", title="what the device does at most", rows=rows, notes=notes)


def _median(program: Any, settings: Settings) -> float:
    program()
    return statistics.median(seconds(program, settings.device) for _ in range(settings.pairs))


# --- one megapixel ----------------------------------------------------------------------------------------------------


def decodes(settings: Settings, most: Table) -> Table:
    """Time enlargements, and compare with targets and with the roofline."""
    flow = published.random_srflow(**(SMALL if settings.quick else {})).to(settings.device)
    lr, on_gpu = picture(settings.lr, settings.lr).to(settings.device), settings.device.startswith("cuda")
    work, pixels = multiply_adds(flow.config), (settings.lr * flow.config.scale) ** 2
    rows: list[dict[str, Any]] = []
    for limit in most.rows:
        precision = limit["precision"]
        compiled = CompiledFlow(flow, cast(Any, precision))
        for samples in settings.samples:
            run = lambda n=samples, p=compiled: flowcore.upscale(p, lr, temperature=TEMPERATURE, samples=n)  # noqa: E731
            with Traffic() as traffic:
                run()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(settings.device)
            taken = _median(run, settings)
            flops = 2 * pixels * (work.shared + samples * work.per_sample)
            computing = flops / limit["matrix products, TFLOP/s"] / 1e9
            moving = traffic.nbytes / limit["copy, GB/s"] / 1e6
            target = TARGETS.get(samples)
            counts = target is not None and precision != "float32" and not settings.quick
            rows.append(
                {
                    "precision": precision,
                    "samples": samples,
                    "ms": 1000 * taken,
                    "target ms": target if counts else None,
                    "met": _yes(1000 * taken <= target) if counts and target is not None else None,
                    "TFLOP/s": flops / taken / 1e12,
                    "least ms, computing": computing,
                    "least ms, moving": moving,
                    "of the roofline, %": 100 * max(computing, moving) / (1000 * taken),
                    "peak MiB": torch.cuda.max_memory_allocated(settings.device) / 2**20 if on_gpu else None,
                }
            )
    side = settings.lr * flow.config.scale
    return Table(
        subject="gpu",
        title=f"{flow.config.scale}x to {side}x{side}, random weights",
        rows=rows,
        notes=[
            "All of flowcore.upscale: LR image on the device, encoder, latents drawn on the CPU and moved, decoding, "
            "the check for overflow, pictures on the device. Folding, once per model and precision, is not in it.",
            "Least ms, computing: the network's operations at the rate of large matrix products. Least ms, moving: "
            "what the operations of one run read and write, as far as torch tells, at the rate of a copy; caches are "
            "not counted, and fused operations would need less. The roofline is the larger.",
        ],
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its tensors."""
        made = func(*args, **(kwargs or {}))
        aliases = [value.alias_info for value in func._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases) or "empty" in str(func):
            return made
        tensors = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)]
        tensors += [t for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, Tensor)]
        self.nbytes += sum(t.numel() * t.element_size() for t in tensors)
        return made


# --- are the results right --------------------------------------------------------------------------------------------


def errors(settings: Settings) -> Table:
    """Compare the pictures of the shipped models with those of the CPU in float64."""
    rows: list[dict[str, Any]] = []
    for name in MODELS[-1:] if settings.quick else MODELS:
        for precision, found in computed(name, PICTURES, settings.device, precisions(settings.device)).items():
            within = _yes(found["largest"] <= 2e-3 * 255) if precision == "float32" else None
            rows.append({"model": name, "precision": precision, **found, "within 2e-3": within})
    title = "distance from the plain path on the CPU in float64, in 1/255"
    return Table(subject="gpu", title=title, rows=rows, notes=["As benchmarks.precision, on pictures of workflows."])


# --- the report -------------------------------------------------------------------------------------------------------


def _gpu(device: str) -> dict[str, Any]:
    free = devices.free_memory(device)
    found: dict[str, Any] = {"free MiB": None if free is None else free // 2**20}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory MiB": properties.total_memory // 2**20,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "auto": devices.preferred_precision(torch.device(device)),
        }
    return found


if __name__ == "__main__":
    main()
