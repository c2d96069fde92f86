"""The property that the pack's caches rest on: a node that gets anything else has another key.

Nodes and inputs are read off the pack as the host has loaded it. An input of a type that `VARIANTS` does not know fails
the property, so a new one cannot be forgotten.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import torch

SKIPPED = {"pick"}  # chooses among the pictures of a run, which it does not change


def module(name):
    """The module of the pack whose name ends like this."""
    (found,) = {id(loaded): loaded for full, loaded in list(sys.modules.items()) if full.endswith(name)}.values()
    return found


def different(value):
    """Values that differ from a value in one part each, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        moved = value.clone()
        moved.view(-1)[-1] += 1
        turned = value.reshape(value.shape[::-1])  # the same numbers
        return [moved, turned] if turned.shape != value.shape else [moved]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return [dataclasses.replace(value, **{n: part}) for n in names for part in different(getattr(value, n))]
    if isinstance(value, (list, tuple)):
        each = [[*value[:k], part, *value[k + 1 :]] for k, old in enumerate(value) for part in different(old)]
        return [type(value)(parts) for parts in each]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1]
    if isinstance(value, str):
        return [value + "x"]
    assert value is None, type(value)
    return []


def picture(*shape):
    return torch.linspace(0, 1, torch.Size(shape).numel()).reshape(shape)


def models():
    """A model, and others that differ in a weight, in a field of its configuration, and in its guide."""
    sockets, built = module(".nodes.sockets"), module("flowcore.models")
    fields = {"scale": 2, "levels": 2, "steps": 1, "hidden": 4, "encoder_blocks": 1, "encoder_width": 4}
    fields |= {"encoder_growth": 4, "stacked_blocks": (0,), "guide_layers": 2, "guide_width": 4}
    plain = built.configure("srflow", fields)

    def made(config, changed=""):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            flow = built.build("srflow", config)
            for name, tensor in flow.state_dict().items():
                if changed and name.startswith(changed):
                    tensor += 1
        return sockets.HostModel(SimpleNamespace(model=flow), "a model")

    settings = dataclasses.replace(plain, calm_edges=0.25)
    return [made(plain), made(plain, "levels."), made(plain, "guide."), made(settings)]


def memories():
    """A memory of colors, and others that differ in a tensor or in a recommendation."""
    kind, cells = module(".colorizer.color_memory").ColorMemory, module(".color_index").CellMemory
    names = [*cells(2).state_dict()]

    def filled(changed):
        places = cells(2)
        for name, tensor in places.state_dict().items():
            tensor += name == changed
        return kind(places, "backbone")

    found = [filled(""), *map(filled, names)]
    recommended = ("share", "neighbors", "strength", "weight")
    return found + [dataclasses.replace(found[0], **{name: 7}) for name in recommended]


def latents():
    kind = module(".nodes.sockets").Latents
    return kind(
        levels=[picture(1, 2, 3, 4), picture(1, 2, 2, 2)],
        model_sha256="a",
        model_name="b",
        architecture="c",
        labels=torch.arange(2),
        source=picture(1, 3, 2, 2),
    )


def face():
    kind = module(".images.faces").FacePlace
    return kind(left_eye=(1.0, 2.0), right_eye=(3.0, 2.0), height=8, width=9, window=(0.0, 1.0, 2.0))


def varied(value):
    return [value, *different(value)]


VARIANTS = {
    "IMAGE": lambda spec: varied(picture(1, 3, 4, 5)),
    "IMAGE,VIDEO": lambda spec: varied(picture(1, 3, 4, 5)),
    "MASK": lambda spec: varied(picture(1, 4, 5)),
    "FLOW_MODEL": lambda spec: models(),
    "FLOW_LATENTS": lambda spec: varied(latents()),
    "FLOW_HINTS": lambda spec: varied(
        module("flowcore.tasks.hints").Hints(
            coverage=picture(1, 1, 4, 5), chroma=picture(1, 2, 4, 5), palette=picture(1, 4), lock=True
        )
    ),
    "FLOW_MEMORY": lambda spec: memories(),
    "FLOW_FACE": lambda spec: varied(
        (
            module(".images.faces").FacePlace(
                left_eye=(1.0, 2.0), right_eye=(3.0, 2.0), height=8, width=9, window=(0.0, 1.0, 2.0)
            ),
        )
    ),
    "INT": lambda spec: [spec.min, spec.min + 1, spec.max],
    "FLOAT": lambda spec: [spec.min, (spec.min + spec.max) / 2, spec.max],
    "BOOLEAN": lambda spec: [False, True],
    "COMBO": lambda spec: spec.options,
    "STRING": lambda spec: ["", "1", "1, 2"],
}


def inputs(node):
    """The inputs of a node: for each its type, and values of that type that all differ."""
    kinds = {spec.id: (str(spec.get_io_type()), spec) for spec in node.define_schema().inputs if spec.id not in SKIPPED}
    return {name: (kind, VARIANTS[kind](spec)) for name, (kind, spec) in kinds.items()}


def equal_pairs(keys):
    return [pair for pair in itertools.combinations(range(len(keys)), 2) if keys[pair[0]] == keys[pair[1]]]


def picking(node, values):
    """Check a node of several pictures: another value, another key among the latest runs."""
    first, same = {name: several[0] for name, (_, several) in values.items()}, []
    for name, (_, several) in values.items():
        pairs = equal_pairs([node.run_key(first | {name: value})[0] for value in several])
        same += [f"{node.__name__}: run_key: {name} {pair}" for pair in pairs]
    return same


def live(node, values):
    """Check a node with live pictures: each run finds the very model that it had."""
    module_, sockets, same = module(".nodes.live"), module(".nodes.sockets"), []
    first = {name: several[0] for name, (_, several) in values.items()}
    for number, model in enumerate(values["model"][1] if "model" in values else []):
        run = first | {"model": model}
        if issubclass(node, module_.LiveNode):
            (name,) = module_.LIVE_RUNS.keep(node, run, first["latents"])
        else:
            (name,) = module_.LIVE_RUNS.keep_source(node, run, node.PREVIEW)["flowcore_live"]
        if sockets.find_loaded(module_.LIVE_RUNS.get(name).model) is not model:
            same.append(f"{node.__name__}: live: model {number}")
    return same


# by input: the kind of folder, and the name of a file there, or of a folder if it has no suffix
NAMED = {
    **dict.fromkeys(("picture", "image", "file", "source"), ("input", "key.png")),
    **dict.fromkeys(("model_name", "start"), ("flows", "key.safetensors")),
    "recipe": ("flows", "key.toml"),
    "folder": ("input", "keys"),
    "record": ("user", "key.sqlite"),
}
PLACES = {
    "input": lambda: folder_paths.get_input_directory(),
    "flows": lambda: folder_paths.get_folder_paths("flows")[0],
    "user": lambda: folder_paths.get_user_directory() + "/flowcore",
}


OPENED = set()  # paths of files of this check
sys.addaudithook(lambda event, args: OPENED.add(str(args[0])) if event == "open" and "key" in str(args[0]) else None)


def files(node, values):
    """Check a node that names files: another content has another fingerprint, the same is read once."""
    named, same = [name for name, (kind, _) in values.items() if kind in ("COMBO", "STRING") and name in NAMED], []
    assert named, f"{node.__name__} reads what NAMED does not know"
    for name in named:
        place, file = NAMED[name]
        path = Path(PLACES[place]())
        asked = dict.fromkeys(values) | {name: [file] if node.define_schema().is_input_list else file}
        stamps = []
        for number in (1, 2):
            changed = path / file if Path(file).suffix else path / file / f"{number}.png"
            changed.parent.mkdir(parents=True, exist_ok=True)
            changed.write_bytes(b"\x89PNG\r\n\x1a\n" + b"content" * number)  # as a picture begins
            stamps.append(node.fingerprint_inputs(**asked))
            OPENED.clear()
            node.fingerprint_inputs(**asked)
            same += [f"{node.__name__}: {file} was read again"] if str(changed) in OPENED else []
            changed.unlink()
        same += [f"{node.__name__}: fingerprint_inputs: {name}"] if stamps[0] == stamps[1] else []
    return same


def check():
    """Check all nodes; what has the same key, and how many nodes were checked in which way."""
    pack, same, counts = module("under-test.nodes"), [], {"picking": 0, "live": 0, "files": 0}
    kinds = module(".nodes.picking").PickingNode, module(".nodes.live").LiveNode
    for node in pack.NODES:
        checks = {
            picking: issubclass(node, kinds[0]),
            live: bool(node.PREVIEW) or issubclass(node, kinds[1]),
            files: node.fingerprint_inputs.__func__ is not pack.FlowNode.fingerprint_inputs.__func__,
        }
        for run in [run for run, applies in checks.items() if applies]:
            same += run(node, inputs(node))
            counts[run.__name__] += 1
    return same, counts
