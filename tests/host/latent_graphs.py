"""Graphs of nodes that sample, encode and work on latents."""

import torch
from talk import graph, loader, picture, report

GLOW = "small-glow.safetensors"
DIGITS = "small-digits.safetensors"


def working(kind, name=GLOW, other=None, samples=(1, 1), labels=("", ""), **values):
    """Two samplings, seeds 10 and 20, and a node that works on them, reported number by number."""

    def draw(number, model, seed):
        asked = {"samples": samples[number], "temperature": 1.0, "seed": seed, "labels": labels[number]}
        return "FlowcoreSample", {"model": model, **asked}

    return graph(
        model=loader(name),
        other=loader(other or name),
        one=draw(0, "model.0", 10),
        two=draw(1, "other.0" if other else "model.0", 20),
        node=(kind, values),
        report=("FlowcoreTestLatents", {"latents": "node.0"}),
    )


def explore(anchors="abcd", model=GLOW, other=None, labels=("", ""), **values):
    """The explorer between samplings of the seeds 10, 20, 30 and 40; or fewer of them."""
    drawn = {"model": "model.0", "samples": 1, "temperature": 1.0}
    wires = {"a": "one.1", "b": "two.1", "c": "three.1", "d": "four.1"}
    values |= {anchor: wires[anchor] for anchor in anchors}
    return graph(
        working("FlowcoreLatentExplorer", model, other, labels=labels, **values),
        three=("FlowcoreSample", drawn | {"seed": 30}),
        four=("FlowcoreSample", drawn | {"seed": 40}),
    )


def sampling(model="small-glow.safetensors", **inputs):
    asked = {"model": "model.0", "samples": 3, "temperature": 0.7, "seed": 5, "snap": False} | inputs
    return graph(
        model=loader(model),
        sample=("FlowcoreSample", asked),
        images=report("sample.0"),
        latents=("FlowcoreTestLatents", {"latents": "sample.1"}),
        decode=("FlowcoreDecode", {"latents": "sample.1", "model": "model.0"}),
        again=report("decode.0"),
    )


def encoding(model="small-glow.safetensors", image=None, decode=None, **inputs):
    return graph(
        model=loader(model),
        image=picture(fill="noise") if image is None else image,
        encode=("FlowcoreEncode", {"image": "image.0", "model": "model.0", "dequantize": "off"} | inputs),
        latents=("FlowcoreTestLatents", {"latents": "encode.0"}),
        encoded=report("encode.2"),
        decode=("FlowcoreDecode", {"latents": "encode.0", "model": "model.0"} | (decode or {})),
        again=report("decode.0"),
    )


def tensors(found):
    return [torch.tensor(level) for level in found["levels"]]
