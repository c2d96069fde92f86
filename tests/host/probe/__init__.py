"""A second node pack, for the tests only: it makes images that no file can hold, and reports what arrives."""

import gc
import hashlib
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PHOTO = Path(__file__).resolve().parents[3] / "workflows" / "photo.png"


class Node:
    """A node whose inputs are named in the head of its class, each with its type, options, or both and properties."""

    RETURN_TYPES = ()
    FUNCTION, CATEGORY = "run", "flowcore tests"

    def __init_subclass__(cls, optional=False, **inputs):
        described = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in inputs.items()}
        cls.inputs = {"optional" if optional else "required": described}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}} | cls.inputs


class Report(Node):
    """A node that puts what it finds into the history."""

    OUTPUT_NODE = True


class FreshReport(Report):
    """Every prompt computes it anew, and none keeps what it has computed."""

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")


SIZE = ("INT", {"default": 1, "min": 0})
DTYPES = ["float32", "float16", "float64", "video"]


class TestImage(Node, batch=SIZE, height=SIZE, width=SIZE, channels=SIZE, fill="STRING", dtype=DTYPES):
    """An IMAGE of any shape, dtype and content."""

    RETURN_TYPES = ("IMAGE",)

    def run(self, batch, height, width, channels, fill, dtype):
        shape = (batch, height, width, channels)
        if fill == "gradient":
            rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
            image = (rows[None, :, None, None] + columns[None, None, :, None]).div(2).expand(shape).clone()
        elif fill.startswith("noise"):  # on the 8-bit grid, as pictures of files are; another number, another picture
            generator = torch.Generator().manual_seed(int(fill.removeprefix("noise") or 0))
            image = torch.randint(0, 256, shape, generator=generator) / 255
        elif fill.startswith("photo"):  # a piece of the sample photograph, which models know; another number, another
            number = int(fill.removeprefix("photo") or 0)
            with Image.open(PHOTO) as photo:
                left, top = 37 * number % (photo.width - width + 1), 23 * number % (photo.height - height + 1)
                piece = photo.convert("L" if channels == 1 else "RGB").crop((left, top, left + width, top + height))
            pixels = torch.from_numpy(np.array(piece)).reshape(1, height, width, channels)
            image = pixels.expand(shape) / 255
        else:
            image = torch.full(shape, float(fill))
        if dtype == "video":  # (batch, frames, height, width, channels), as some packs pass it on
            return (image[None],)
        return (image.to(getattr(torch, dtype)),)


class TestReport(Report, image="IMAGE"):
    """Puts facts about an IMAGE into the history."""

    def run(self, image):
        facts = {
            "shape": list(image.shape),
            "dtype": [str(image.dtype).removeprefix("torch.")],
            "range": [float(image.min()), float(image.max())],
            "rows": image.float().flatten(1).tolist() if image.numel() < 50_000 else [],
        }
        return {"ui": facts}


class TestDigest(FreshReport, optional=True, image="IMAGE", latents="FLOW_LATENTS", number="FLOAT"):
    """Puts fingerprints of images, latents and numbers into the history: of every bit, and of 8 bits, as in a file."""

    INPUT_IS_LIST = True

    def run(self, image=(), latents=(), number=()):
        levels = [z for each in latents for z in each.levels]
        numbers = [torch.tensor([float(value) for value in number], dtype=torch.float64)] if number else []
        bits = hashlib.sha256(b"".join(t.contiguous().cpu().numpy().tobytes() for t in (*image, *levels, *numbers)))
        # As SaveImage stores it, which cuts off and does not round.
        stored = hashlib.sha256(b"".join((t * 255).clamp(0, 255).byte().cpu().numpy().tobytes() for t in image))
        return {"ui": {"bits": [bits.hexdigest()], "stored": [stored.hexdigest()]}}


class TestObjects(FreshReport):
    """Puts into the history what the server's process holds: tensors and modules."""

    def run(self):
        gc.collect()
        objects = gc.get_objects()
        tensors = [one for one in objects if issubclass(type(one), torch.Tensor)]
        held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        modules = sum(issubclass(type(one), torch.nn.Module) for one in objects)
        return {"ui": {"tensors": [len(tensors)], "bytes": [sum(held.values())], "modules": [modules]}}


class TestStore(FreshReport, optional=True, after="IMAGE"):
    """Puts into the history what the pack keeps of images (how many conditions, and bytes), and of models."""

    def run(self, after=None):
        (store,) = [m.STORE for name, m in list(sys.modules.items()) if name.endswith(".nodes.upscaling")]
        (cache,) = [m.CACHE for name, m in list(sys.modules.items()) if name == "flowcore.engine.compiled"]
        facts = {"count": [len(store)], "bytes": [store.nbytes], "budget": [store.budget]}
        return {"ui": facts | {"compiled": [len(cache)]}}


class TestFree(FreshReport, number="INT"):
    """Makes picking believe that so many bytes are free, 0 for those that are; reports how many its kept runs have."""

    def run(self, number):
        from flowcore.device import free_memory

        (picking,) = [m for name, m in list(sys.modules.items()) if name.endswith(".nodes.picking")]
        picking.free_memory = (lambda _: number) if number else free_memory
        return {"ui": {"bytes": [picking.RUNS.nbytes]}}


class TestKeys(FreshReport):
    """Puts into the history what changes of which inputs leave a node's key as it was; see `keys.py`."""

    def run(self):
        from .keys import check

        same, counts = check()
        return {"ui": {"same": same, **{name: [count] for name, count in counts.items()}}}


class TestLive(FreshReport, number="INT"):
    """Lets live pictures keep so many bytes of inputs, 0 for as many as without this; reports how many they keep."""

    def run(self, number):
        (live,) = [m for name, m in list(sys.modules.items()) if name.endswith(".nodes.live")]
        live.MAX_BYTES = number or 2**28
        return {"ui": {"count": [len(live.LIVE_RUNS)], "bytes": [live.LIVE_RUNS.nbytes]}}


class TestImages(Node, first="IMAGE", second="IMAGE"):
    """Two IMAGEs as a list."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)

    def run(self, first, second):
        return ([first, second],)


class TestLatents(Report, latents="FLOW_LATENTS"):
    """Puts FLOW_LATENTS into the history, number by number."""

    def run(self, latents):
        facts = {
            "levels": [z.tolist() for z in latents.levels],
            "labels": [] if latents.labels is None else latents.labels.tolist(),
            "source": [] if latents.source is None else latents.source.tolist(),
            "model": [latents.model_name, latents.architecture, latents.model_sha256],
            "types": sorted({f"{z.dtype} {z.device}" for z in latents.levels}),
        }
        return {"ui": facts}


class TestLandmarks(Node, faces=("STRING", {"multiline": True})):
    """FACE_LANDMARKS, as the host's face detector makes them: faces from their eyes and noses, one a line.

    A line is six numbers, left eye, right eye and nose; an empty text is a picture without faces.
    """

    RETURN_TYPES = ("FACE_LANDMARKS",)

    def run(self, faces):
        found = []
        for line in faces.splitlines():
            points = torch.tensor([float(word) for word in line.split()]).reshape(3, 2)
            mesh = points[2].repeat(478, 1)
            mesh[468], mesh[473] = points[0], points[1]
            found.append({"landmarks_xy": mesh.numpy()})
        return ({"frames": [found], "image_size": (0, 0), "connection_sets": {}},)


class TestWrong(Node):
    """Things that are not what their sockets say."""

    RETURN_TYPES = ("FLOW_LATENTS", "FLOW_MODEL", "FLOW_HINTS", "FLOW_FACE", "FACE_LANDMARKS")

    def run(self):
        return {"samples": torch.zeros(1, 4, 8, 8)}, torch.nn.Linear(1, 1), 5, (1, 2), ["eyes"]


class TestOffload(FreshReport):
    """Moves all models off their devices, as a node does that needs room."""

    def run(self):
        import comfy.model_management

        comfy.model_management.unload_all_models()
        return {"ui": {}}


class TestHalf(FreshReport, on="BOOLEAN"):
    """Lets the host pass images on in float16, as its flag --fp16-intermediates does, or not."""

    def run(self, on):
        from comfy.cli_args import args

        args.fp16_intermediates = on
        return {"ui": {}}


OPENED: dict[bool, int] = {True: 0, False: 0}  # files of the pack's pictures: whether in the thread of the event loop


def _count_opened(event, arguments):
    if event == "open" and "/workflows/" in str(arguments[0]) and str(arguments[0]).endswith((".jpg", ".png")):
        OPENED[threading.current_thread() is threading.main_thread()] += 1


sys.addaudithook(_count_opened)


class TestOpened(FreshReport):
    """Puts into the history how many times pictures of the pack were opened, in the event loop and elsewhere."""

    def run(self):
        return {"ui": {"in_loop": [OPENED[True]], "elsewhere": [OPENED[False]]}}


class TestLoop(Node, image="IMAGE", model="FLOW_MODEL", passes="INT"):
    """Flow Upscale several times, each with the next seed, in a graph of their own: what loops of other packs do."""

    RETURN_TYPES = ("IMAGE",)

    def run(self, image, model, passes):
        from comfy_execution.graph_utils import GraphBuilder

        graph, made = GraphBuilder(), None
        for seed in range(passes):
            asked = {"image": image, "model": model, "temperature": 0.8, "seed": seed}
            drawn = graph.node("FlowcoreUpscale", **asked).out(0)
            made = graph.node("ImageBatch", image1=made, image2=drawn).out(0) if made else drawn
        return {"result": (made,), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {f"Flowcore{name}": kind for name, kind in globals().copy().items() if name.startswith("Test")}
