"""An option means the same in Python, on the command line and in nodes, and docs/options.md says where it is."""

from flowcore.cli.main import build_parser

from . import options_table as options


def test_the_page_is_what_the_signatures_say():
    (tables,) = options.TABLES.findall(options.PAGE.read_text(encoding="utf-8"))
    assert tables == options.render(), "write it anew: .venv/bin/python tests/core/options_table.py"


def test_an_option_that_is_left_out_is_the_same_everywhere_or_there_is_a_reason():
    tables = {title: options.rows(task) for title, task in options.TASKS.items()}
    different = {(title, name) for title, rows in tables.items() for name, row in rows.items() if options.differ(row)}
    assert different <= {*options.DIFFERENT}
    assert all(name in tables[title] for title, name in options.DIFFERENT)


def test_photographs_of_a_folder_are_called_images_as_on_the_node():
    options = build_parser().parse_args(["colorize", "a.jpg", "b.jpg", "--frames", "images"])
    assert options.frames == "images"


def test_every_option_of_a_node_or_of_python_has_the_name_of_the_command_line():
    """What is offered on both sides has one row; of what has two, the command line's alone would be left."""
    for task in options.TASKS.values():
        for name, row in options.rows(task).items():
            assert row.keys() - {"what"}, name
            twin = name.rstrip("s") if name.endswith("s") else f"{name}s"
            assert twin not in options.rows(task) or twin in ("temperature", "temperatures"), name
