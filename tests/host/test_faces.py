"""Flow Align Face and Flow Paste Face over the API: eyes typed, painted and detected, and what is refused."""

import torch
from talk import graph, newest, noise, picture, pixels, refusal, report

from flowcore.tasks.faces import align_faces, paste_faces

pytestmark = newest
HEIGHT, WIDTH = 40, 48
EYES = ((19.0, 16.0), (28.0, 18.0))  # 9.2 pixels apart: a face of 39
POINTS = {"left_eye": "19, 16", "right_eye": "28, 18"}


def aligning(image=None, **inputs):
    return graph(
        image=image or picture(fill="noise", height=HEIGHT, width=WIDTH),
        align=("FlowcoreAlignFace", {"image": "image.0", "size": 0} | inputs),
        report=report("align.0"),
    )


def detecting(faces, **inputs):
    return graph(aligning(landmarks="find.0", **inputs), find=("FlowcoreTestLandmarks", {"faces": faces}))


def painted(*corners, **inputs):
    """A mask with squares at some corners, made by the host's own nodes."""
    nodes = {"dot": ("SolidMask", {"value": 1.0, "width": 2, "height": 2})}
    last, nodes["mask0"] = "mask0", ("SolidMask", {"value": 0.0, "width": WIDTH, "height": HEIGHT})
    for number, (x, y) in enumerate(corners, start=1):
        joined = {"destination": f"{last}.0", "source": "dot.0", "x": x, "y": y, "operation": "add"}
        last, nodes[f"mask{number}"] = f"mask{number}", ("MaskComposite", joined)
    return graph(aligning(eyes=f"{last}.0", **inputs), **nodes)


def known(eyes=EYES, size=0):
    return align_faces(noise(1, 3, HEIGHT, WIDTH), [[eyes]], size=size)


def made(host, workflow):
    outputs = host.outputs(workflow)
    return pixels(outputs["report"]), outputs["align"]["text"]


def test_eyes_are_typed(host):
    face, text = made(host, aligning(size=64, **POINTS))
    torch.testing.assert_close(face, known(size=64)[0], atol=1e-5, rtol=0)
    assert "the eyes 19, 16 and 28, 18 hardly looks like a face" in text[0]
    assert "of the face lies outside" in text[1]
    assert text[2] == "eyes at 19.0, 16.0 and 28.0, 18.0; the face has 39 pixels"
    exchanged, _ = made(host, aligning(size=64, left_eye="(28;18)", right_eye="19.0 16.0"))
    assert torch.equal(exchanged, face)


def test_eyes_are_painted(host):
    face, text = made(host, painted((18, 15), (27, 17)))
    torch.testing.assert_close(face, known()[0], atol=1e-5, rtol=0)
    assert text[-1].startswith("eyes at 19.0, 16.0 and 28.0, 18.0")


def test_eyes_are_detected(host):
    """The largest face, unless another is asked for; here its size is that of the triangle of eyes and nose."""
    faces = "10 10 14 10 12 12\n19 16 28 18 23 24"
    face, text = made(host, detecting(faces))
    torch.testing.assert_close(face, known()[0], atol=1e-5, rtol=0)
    assert "2 faces were found; this is number 1, the largest is 1." in text
    face, text = made(host, detecting(faces, face=2))
    torch.testing.assert_close(face, known(((10.0, 10.0), (14.0, 10.0)))[0], atol=1e-5, rtol=0)
    both, text = made(host, detecting(faces, face=0, size=24))
    assert both.shape[0] == 2
    assert text[-1] == "2 faces of 17 to 39 pixels"
    assert made(host, detecting(faces, face=0, smallest=20, size=24))[0].shape[0] == 1


def test_points_go_before_the_mask_and_the_mask_before_landmarks(host):
    find = ("FlowcoreTestLandmarks", {"faces": "1 1 9 1 5 5"})
    other = graph(painted((10, 10), (20, 10), landmarks="find.0"), find=find)
    assert made(host, other)[1][-1].startswith("eyes at 11.0, 11.0")
    other["align"]["inputs"] |= POINTS
    assert made(host, other)[1][-1].startswith("eyes at 19.0, 16.0")


def test_one_eye_alone_and_other_bad_points_are_refused(host):
    refusal(host, aligning(left_eye="19, 16"), "right_eye must be a point")
    refusal(host, aligning(left_eye="left", right_eye="28, 18"), "left_eye must be a point `x, y`", "`left`")
    refusal(host, aligning(left_eye="19, 16; 9, 9", right_eye="28, 18"), "left_eye has 2 and right_eye has 1")
    refusal(host, detecting("19 16 28 18 23 24", face=2), "One face was found; face 2 was asked for")


def test_faces_are_found_without_eyes(host):
    """Those of the story's group, of which `number` keeps the largest; the page is told their eyes."""
    photo = ("FlowcoreExample", {"picture": "group photograph"})
    outputs = host.outputs(aligning(photo))
    assert outputs["align"]["text"][-1].startswith("3 faces of ")
    lefts, rights = outputs["align"]["eyes"]
    assert [len(lefts), len(rights)] == [3, 3]
    assert all(x < u for (x, _), (u, _) in zip(lefts, rights, strict=True))
    outputs = host.outputs(aligning(photo, number=1))
    assert [outputs["align"]["eyes"], outputs["report"]["shape"][0]] == [[lefts[:1], rights[:1]], 1]


def test_only_faces_in_the_boxes_of_the_host_are_taken(host):
    photo, shape = ("FlowcoreExample", {"picture": "group photograph"}), {"y": 0, "width": 40}
    box = ("PrimitiveBoundingBox", {"x": 50, "height": 50, **shape})
    outputs = host.outputs(aligning(photo, boxes="box.0"), box=box)
    assert outputs["report"]["shape"][0] == 1
    below = ("PrimitiveBoundingBox", {"x": 0, "height": 4, **shape})
    outputs = host.outputs(graph(aligning(photo, boxes="box.0"), box=below))
    assert outputs["align"]["text"][0] == "No face was found in 1 of 1 boxes."


def test_boxes_of_faces_can_be_drawn_and_give_the_same_faces(host):
    outputs = host.outputs(
        aligning(("FlowcoreExample", {"picture": "group photograph"})),
        again=("FlowcoreAlignFace", {"image": "image.0", "size": 0, "boxes": "align.2"}),
        faces=report("again.0"),
        draw=("DrawBBoxes", {"image": "image.0", "bboxes": "align.2"}),
        drawn=report("draw.0"),
        before=report("image.0"),
    )
    assert torch.equal(pixels(outputs["faces"]), pixels(outputs["report"]))
    assert 3 * 50 < (pixels(outputs["drawn"]) - pixels(outputs["before"])).abs().gt(0.1).any(1).sum() < 3 * 500


def test_wires_of_a_wrong_type_are_refused(host):
    wrong = graph(wrong=("FlowcoreTestWrong", {}))
    workflow = aligning(**POINTS, landmarks="wrong.4") | wrong
    refusal(host, graph(workflow), "landmarks must come from Detect Face Landmarks", "list")
    refusal(host, graph(pasting(place="wrong.3") | wrong), "Expected the place of Flow Align Face; got tuple")


def pasting(face="align.0", **inputs):
    return graph(
        aligning(**POINTS),
        face=picture(fill="noise5", height=24, width=24, batch=2),
        paste=("FlowcorePasteFace", {"image": "image.0", "face": face, "place": "align.1"} | inputs),
        report=report("paste.0"),
    )


def test_faces_go_back_where_they_were(host):
    image, faces = noise(1, 3, HEIGHT, WIDTH), noise(2, 3, 24, 24, number=5)
    for options in ({}, {"feather": 0.3}):
        made = pixels(host.outputs(pasting("face.0", **options))["report"])
        torch.testing.assert_close(made, paste_faces(image, faces, known()[1], **options), atol=1e-5, rtol=0)


def test_a_face_goes_into_the_enlarged_photograph_alone(host):
    larger = graph(pasting(enlarge=True), align=("FlowcoreAlignFace", {"image": "image.0", "size": 78} | POINTS))
    assert host.outputs(larger)["report"]["shape"][1:3] == [2 * HEIGHT, 2 * WIDTH]


def test_faces_that_came_out_worse_than_the_enlarged_photograph_are_left_out(host):
    """With the photograph; noise, here. The gallery shows each picture beside it."""
    photo = ("FlowcoreExample", {"picture": "group photograph"})
    aligned = ("FlowcoreAlignFace", {"image": "image.0", "size": 0, "number": 2})
    outputs = host.outputs(graph(pasting("face.0", photograph="image.0"), image=photo, align=aligned))
    told = "2 of 2 pasted faces had specks, or were unlike the photograph: the picture was kept there."
    assert told in outputs["paste"]["text"]
    assert len(outputs["paste"]["flowcore_gallery"]) == outputs["report"]["shape"][0] == 1


def test_a_picture_without_a_face_passes_with_a_note(host):
    aligned = ("FlowcoreAlignFace", {"image": "image.0", "size": 0})
    draw = ("DrawBBoxes", {"image": "image.0", "bboxes": "align.2"})
    outputs = host.outputs(graph(pasting(), align=aligned, before=report("image.0"), draw=draw, drawn=report("draw.0")))
    note, text = outputs["align"]["text"]
    assert note.startswith("No face was found, so none is restored there. If there is one, click both its eyes")
    assert text == "no face: the picture stays as it is"
    assert outputs["align"]["eyes"] == [[], []]
    assert torch.equal(pixels(outputs["report"])[:1], pixels(outputs["before"]))
    assert torch.equal(pixels(outputs["drawn"]), pixels(outputs["before"]))


def test_found_faces_that_are_too_large_are_left_out_and_what_is_pasted_for_them_changes_nothing(host):
    photo = ("FlowcoreExample", {"picture": "group photograph"})
    aligned = ("FlowcoreAlignFace", {"image": "image.0", "size": 0, "largest": 20})
    outputs = host.outputs(graph(pasting(), image=photo, align=aligned, before=report("image.0")))
    assert outputs["align"]["text"][0].startswith("Of 3 faces, 3 of more than 20 pixels")
    assert torch.equal(pixels(outputs["report"])[:1], pixels(outputs["before"]))
