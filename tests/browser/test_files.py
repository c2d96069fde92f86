"""Files that a person chooses: several through the button for one."""

from opened_workflows import RED, story


def test_several_pictures_that_are_chosen_become_a_folder(canvas, page, served, tmp_path):
    files = [tmp_path / name for name in ("one.png", "two.png")]
    for file in files:
        file.write_bytes(RED.getvalue())
    canvas.open(story("morph-faces"))
    canvas.look_at("FlowcoreExample")

    def choose(chosen):
        with page.expect_file_chooser() as chooser:
            if canvas.vue:
                page.locator("label:has(input[type=file])").click()
            else:
                left, top, right, _ = canvas.bounds("FlowcoreExample")
                down = page.evaluate("() => app.graph.nodes.find(n => n.type === 'FlowcoreExample').widgets[1].y + 40")
                page.mouse.click((left + right) / 2, top + down)
        assert chooser.value.is_multiple()
        before = canvas.sent("FlowcoreExample")["picture"]
        chooser.value.set_files(chosen)
        page.wait_for_function(
            "before => app.graph.nodes.find(n => n.type === 'FlowcoreExample').widgets[0].value !== before", arg=before
        )
        page.wait_for_timeout(500)
        return canvas.sent("FlowcoreExample")["picture"]

    folder = choose(files)
    assert folder.startswith("flowcore/one ")
    assert sorted(file.name for file in (served.base / "input" / folder).iterdir()) == ["0001 one.png", "0002 two.png"]
    assert choose(files[1:]) == "two.png"
