"""Flow Find Scratches and Flow Repair in the host."""

import json

import numpy as np
import torch
from PIL import Image, ImageDraw
from talk import ask, graph, loader, newest, opened, pixels, report, until

import flowcore


def scan() -> Image.Image:
    """A gray gradient with a white scratch and a speck of dust."""
    picture = Image.linear_gradient("L").resize((96, 80)).point(lambda v: 60 + v // 4).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.line([(40, 8), (46, 70)], fill="white", width=2)
    draw.ellipse([(70, 50), (74, 54)], fill="white")
    return picture


def story(**inputs):
    given = {"image": "photo.0", "model": "model.0", "mask": "find.0", "temperature": 0.5, "seed": 1}
    return graph(
        photo=("LoadImage", {"image": "scan.png"}),
        model=loader("small-srflow.safetensors"),
        find=("FlowcoreFindScratches", {"image": "photo.0", "sensitivity": 0.5}),
        repair=("FlowcoreRepair", given | inputs),
        report=report("repair.0"),
    )


@newest
def test_a_scratched_scan_is_repaired_where_the_mask_is_and_nowhere_else(host, flows):
    host.put("scan.png", scan())
    outputs = host.outputs(story(samples=2))
    assert "% of the picture is marked" in outputs["find"]["text"][0]
    image = torch.from_numpy(np.array(scan())).permute(2, 0, 1)[None] / 255
    mask = flowcore.find_scratches(image) > 0
    repaired = pixels(outputs["report"])
    outside = (~mask).expand_as(image)
    assert len(repaired) == 2
    assert torch.allclose(repaired[:1][outside], image[outside], atol=1e-6)
    assert float(mask[0, 0, 10:68, 38:49].float().sum()) >= 2 * 58
    assert float((repaired[:1] - image)[mask.expand_as(image)].abs().max()) > 0.2


@newest
def test_marks_follow_the_sensitivity_without_another_run(host):
    host.put("scan.png", scan())
    find = {"image": "photo.0", "sensitivity": 0.45}  # which no other test has, or its result would be reused
    workflow = graph(photo=("LoadImage", {"image": "scan.png"}), find=("FlowcoreFindScratches", find))
    workflow["keep"] = {"class_type": "MaskPreview", "inputs": {"mask": ["find", 0]}}
    ((run,),) = [host.run(workflow, extra_pnginfo={"workflow": {}})["outputs"]["find"]["flowcore_live"]]
    for sensitivity in (0.2, 0.95):
        body = {"run": run, "values": {"sensitivity": sensitivity}}
        status, picture = until(lambda body=body: (got := ask(host, body))[0] != 409 and got, 30)
        assert status == 200
        image = torch.from_numpy(np.array(scan())).permute(2, 0, 1)[None] / 255
        mask = flowcore.find_scratches(image, sensitivity=sensitivity)[0, 0] > 0
        red = np.asarray(opened(picture))[..., :3] == (255, 26, 26)
        assert np.array_equal(red.all(-1), mask.numpy())
    assert ask(host, {"run": run, "values": {"sensitivity": 2}})[0] == 422


def test_a_cleaned_picture_says_how_it_was_cleaned(host, flows):
    host.put("scan.png", scan())
    entry = host.run_from_canvas(
        graph(
            photo=("LoadImage", {"image": "scan.png"}),
            model=loader(flows["small-restorer"]),
            clean=("FlowcoreClean", {"image": "photo.0", "model": "model.0", "strength": 0.3}),
            save=("SaveImage", {"images": "clean.0", "filename_prefix": "cleaned"}),
        )
    )
    (data,) = host.pictures({"outputs": {"save": entry["outputs"]["save"]}})
    (recipe,) = json.loads(opened(data).info["flowcore"])
    assert (recipe["node"], recipe["settings"]["strength"], recipe["seed"]) == ("FlowcoreClean", 0.3, 0)
