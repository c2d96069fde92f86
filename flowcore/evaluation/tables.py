"""Results of evaluations as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

UPSCALER_COLUMNS = {  # key of the results: title and format. Readers rely on the order: append.
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lr_psnr": ("LR-PSNR", ".2f"),
    "diversity": ("diversity", ".2f"),
    "gain": ("gain", "+.2f"),
    "diversity_score_lpips": ("diversity score (LPIPS)", ".2f"),
    "diversity_score_mse": ("diversity score (MSE)", ".2f"),
    "niqe": ("NIQE", ".2f"),
    "brisque": ("BRISQUE", ".2f"),
    "piqe": ("PIQE", ".2f"),
    "lpips": ("LPIPS", ".4f"),
    "bits_per_dim": ("bits/dim", ".4f"),
    "false_specks": ("false specks, per mille", ".2f"),
}
COLORIZER_COLUMNS = {
    "bits_per_dim": ("bits/dim", ".3f"),
    "coherence": ("coherence, tau 1", ".3f"),
    "coherence_default": ("coherence", ".3f"),
    "rmse": ("RMSE of 1", ".4f"),
    "rmse_best": ("best of K", ".4f"),
    "rmse_mean": ("mean of K", ".4f"),
    "rmse_calm": ("tau 0", ".4f"),
    "rmse_grey": ("gray", ".4f"),
    "diversity": ("diversity", ".4f"),
    "colourfulness": ("colorfulness", ".4f"),
    "colourfulness_truth": ("truth", ".4f"),
    "colourfulness_gap": ("gap", "+.0%"),
    "luma_error": ("luma error", ".1e"),
    "luma_kept": ("8-bit luma kept", ".0%"),
    "rmse_of_grey": ("RMSE of 1 / gray", ".2f"),
    "rmse_best_of_grey": ("best of K / gray", ".2f"),
    "rmse_calm_of_grey": ("tau 0 / gray", ".2f"),
    "rmse_consensus_of_grey": ("2 of K by consensus / gray", ".2f"),
    "rmse_likelihood_of_grey": ("2 of K by likelihood / gray", ".2f"),
    "fog": ("fog", ".2f"),
    "seams": ("seams", ".2f"),
    "seams_truth": ("seams of truth", ".2f"),
    "skin_outside": ("not skin", ".1%"),  # these two of portraits only
    "skin_grey": ("gray skin", ".1%"),
}


def upscaler_table(results: dict[str, dict[str, dict[str, float]]], measures: Sequence[str] | None = None) -> str:
    """Format results of upscalers: set name to what ``evaluate_upscaler`` returned.

    A column of ``measures``, those that were requested, says "missing" if nothing has it.
    """
    present = {key for methods in results.values() for row in methods.values() for key in row}
    requested = {"diversity_score_mse" if name == "diversity_score" else name for name in measures or ()}
    if "diversity_score_lpips" in present:
        requested.discard("diversity_score_mse")
    columns = {key: column for key, column in UPSCALER_COLUMNS.items() if key in present | requested}
    rows = [
        [name, method]
        + [
            format(row[key], style) if key in row else "-" if key in present or method == "original" else "missing"
            for key, (_, style) in columns.items()
        ]
        for name, methods in results.items()
        for method, row in methods.items()
    ]
    return _markdown(["set", "method", *(title for title, _ in columns.values())], rows)


def colorizer_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format results of colorizers: set name to model name to what ``evaluate_colorizer`` returned."""
    counts = sorted({round(row["samples"]) for models in results.values() for row in models.values()})
    number = "/".join(map(str, counts)) or "K"
    present = {key for models in results.values() for row in models.values() for key in row}
    columns = {key: column for key, column in COLORIZER_COLUMNS.items() if key in present}
    titles = [title.replace("of K", f"of {number}") for title, _ in columns.values()]
    rows = [
        [
            name,
            f"{row['images']:.0f}",
            model,
            *(format(row[key], style) if key in row else "-" for key, (_, style) in columns.items()),
        ]
        for name, models in results.items()
        for model, row in models.items()
    ]
    return _markdown(["set", "images", "model", *titles], rows)


def density_table(results: dict[str, dict[str, float]]) -> str:
    """Format densities: set name to what ``evaluate_density`` returned."""
    rows = [
        [name, f"{row['images']:.0f}", f"{row['bits_per_dim']:.4f}", f"{row['standard_error']:.4f}"]
        for name, row in results.items()
    ]
    return _markdown(["set", "images", "bits per dimension", "standard error"], rows)


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(titles)} |", "|" + "---|" * len(titles), *(f"| {' | '.join(r)} |" for r in rows)])
