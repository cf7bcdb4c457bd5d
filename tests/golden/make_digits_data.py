"""Makes boot/data: the digits teacher in mixed half precision, and statistics of the real digits.

Also golden/digits_teacher.npz: outputs of the float32 original, computed by diffusers.

    python tests/golden/make_digits_data.py TEACHER_FOLDER [teacher] [reference]

Needs the `parity` extra and scikit-learn. TEACHER_FOLDER is a float32 diffusers pipeline folder
(UNet2DModel, ten classes and a null label, 8x8). Prints what it measured; boot/data/README.md
quotes it. Made with torch 2.13.0, diffusers 0.42, scikit-learn 1.9, NumPy 2.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DATA = ROOT / "boot" / "data"

GOLDEN = ROOT / "tests" / "golden" / "digits_teacher.npz"  # of the float32 original

MAX_CHANGE = 1e-3  # promised for the network's output
TYPICAL_CHANGE = 5.8e-4  # for 99.9 % of inputs, so that the rare worst ones stay within the promise
HELD_OUT = 5  # the classifier never sees every fifth image, so that a test can


def digits():
    """Return the 1,797 images (N,1,8,8) of scikit-learn, in [-1, 1], and their labels (N,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 8.0 - 1.0)[:, None], data.target


# ------------------------------------------------------------------------------------ the teacher


def probe_inputs(count: int, seed: int):
    """Samples, timesteps, labels: a third noise, a third noised digits, a third those at t <= 20.

    The last third is where rounding shows most: few grey levels, small variances in the norms.
    """
    import torch

    rng = np.random.default_rng(seed)
    real, _ = digits()
    t = rng.integers(0, 1000, count)
    t[2 * count // 3 :] = rng.integers(0, 21, count - 2 * count // 3)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t].reshape(-1, 1, 1, 1)
    x = rng.standard_normal((count, 1, 8, 8))
    noised = np.sqrt(abar) * real[rng.integers(0, len(real), count)] + np.sqrt(1 - abar) * x
    x[count // 3 :] = noised[count // 3 :]
    labels = rng.integers(0, 11, count)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(t), torch.tensor(labels)


def run(model, inputs):
    """Output of a network for all inputs, in slices."""
    import torch

    with torch.no_grad():
        slices = zip(*(part.split(500) for part in inputs), strict=True)
        return torch.cat([model(x, t, class_labels=c).sample for x, t, c in slices])


def round_to_half(model, exact, names):
    """Set every parameter of `model` to that of `exact`, through float16 for those in `names`."""
    for name, parameter in model.named_parameters():
        value = exact[name]
        parameter.data = value.half().float() if name in names else value.clone()


def choose_half(source: Path) -> list[str]:
    """Find the most tensors that can be float16 without an output changing by over MAX_CHANGE.

    Ranked by what rounding a tensor alone changes, in the 8-norm (worst cases count), a byte saved;
    then the longest prefix that stays within TYPICAL_CHANGE, by bisection. Returns it.
    """
    from diffusers import UNet2DModel

    model = UNet2DModel.from_pretrained(source / "unet").eval()
    exact = {name: p.data.clone() for name, p in model.named_parameters()}
    inputs = probe_inputs(3000, seed=1)
    wanted = run(model, inputs)
    cost = {}
    for name, value in exact.items():
        round_to_half(model, exact, {name})
        change = (run(model, inputs) - wanted).abs().double()
        cost[name] = float((change**8).mean() ** 0.25) / value.numel()
    ranked = sorted(exact, key=lambda name: cost[name])

    round_to_half(model, exact, set())
    inputs = probe_inputs(12_000, seed=2)
    wanted = run(model, inputs)
    low, high = 0, len(ranked) + 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        round_to_half(model, exact, set(ranked[:middle]))
        change = (run(model, inputs) - wanted).abs().flatten(1).amax(dim=1)
        typical = float(change.quantile(0.999))
        print(f"  {middle} of {len(ranked)} tensors in float16: {typical:.2e}, {change.max():.2e}")
        if typical <= TYPICAL_CHANGE:
            low = middle
        else:
            high = middle
    return ranked[:low]


def make_teacher(source: Path) -> None:
    """Write DATA/digits_teacher, and check it on inputs that the search has not seen."""
    from diffusers import UNet2DModel
    from safetensors.torch import load_file, save_file

    half = choose_half(source)
    target = DATA / "digits_teacher"
    shutil.rmtree(target, ignore_errors=True)
    (target / "unet").mkdir(parents=True)
    (target / "scheduler").mkdir()
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        (target / name).write_text(json.dumps(json.loads((source / name).read_text()), indent=2))
    weights = "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(source / weights)
    stored = {n: t.half() if n in half else t for n, t in tensors.items()}
    save_file(stored, target / weights, metadata={"format": "pt"})
    (target / weights).chmod(0o644)  # save_file makes it private

    inputs = probe_inputs(60_000, seed=3)
    wanted = run(UNet2DModel.from_pretrained(source / "unet").eval(), inputs)
    stored_model = UNet2DModel.from_pretrained(target / "unet").float().eval()
    change = (run(stored_model, inputs) - wanted).abs()
    golden = probe_inputs(96, seed=4)
    x, t, c = (part.numpy() for part in golden)
    output = run(UNet2DModel.from_pretrained(source / "unet").eval(), golden).numpy()
    np.savez_compressed(GOLDEN, x=x, t=t, class_labels=c, output=output)
    kept = [name for name in tensors if name not in half]
    print(f"teacher: {(target / weights).stat().st_size} bytes ({len(kept)} tensors in float32)")
    print(f"  60,000 fresh inputs: largest change {change.max():.2e}, mean {change.mean():.2e}")
    worst = change.flatten(1).amax(dim=1)
    print(f"  99.9 % of inputs: at most {worst.quantile(0.999):.2e}")
    print(f"  of outputs up to {wanted.abs().max():.2f}")
    assert change.max() <= MAX_CHANGE


# ---------------------------------------------------------------------------------- the reference


def train_classifier(images: np.ndarray, labels: np.ndarray):
    """Fit kernel ridge regression on +-1 targets to a subset, with a share of it as landmarks."""
    from boot.metrics import KernelClassifier

    gamma, ridge = 0.028, 0.01  # 1/(64 variance), as scikit-learn's "scale"
    rows = images.reshape(len(images), -1)
    squares = ((rows[:, None] - rows[None]) ** 2).sum(axis=-1)
    targets = 2.0 * np.eye(10)[labels] - 1.0
    kernel = np.exp(-gamma * squares)
    coefficients = np.linalg.solve(kernel + ridge * np.eye(len(rows)), targets)
    return KernelClassifier(rows, coefficients.astype(np.float32), np.zeros(10), gamma)


def make_reference() -> None:
    """Write DATA/digits_reference.npz, and print the classifier's accuracy on held-out images."""
    from boot.metrics import Statistics

    images, labels = digits()
    held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    classifier = train_classifier(images[~held_out], labels[~held_out])
    rows = images.reshape(len(images), -1)
    statistics = Statistics.from_features(rows, labels, classifier=classifier)
    path = statistics.save(DATA / "digits_reference.npz")
    right = classifier.predict(rows[held_out]) == labels[held_out]
    print(f"reference: {path.stat().st_size} bytes, {len(classifier.landmarks)} landmarks")
    print(f"  accuracy on {len(right)} held-out images {right.mean():.4f}")


if __name__ == "__main__":
    parts = sys.argv[2:] or ["teacher", "reference"]
    DATA.mkdir(exist_ok=True)
    if "teacher" in parts:
        make_teacher(Path(sys.argv[1]))
    if "reference" in parts:
        make_reference()
