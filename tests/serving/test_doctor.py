"""The doctor: every planted fault is named, sound folders raise no alarm, and a mended copy embeds as it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import build_model, write_lines
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.serving.doctor import examine, fix

Cli = Callable[..., Result]


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    content = {**content, **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change_modules(folder: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    edit(modules)
    path.write_text(json.dumps(modules))


def change_weights(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def with_nan(tensors: dict[str, Any]) -> None:
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan


def with_zeros(tensors: dict[str, Any]) -> None:
    tensors["encoder.layer.0.output.dense.weight"][:] = 0


def normalised(modules: list[dict[str, Any]]) -> None:
    if all("Normalize" not in module["type"] for module in modules):
        kind = "sentence_transformers.models.Normalize"
        modules.append({"idx": len(modules), "name": "last", "path": "9_Normalize", "type": kind})


def add_dense(folder: Path) -> None:
    dense = folder / "5_Dense"
    dense.mkdir()
    described = {"in_features": 32, "out_features": 32, "bias": True}
    described["activation_function"] = "torch.nn.modules.linear.Identity"
    (dense / "config.json").write_text(json.dumps(described))
    weights = {"linear.weight": np.eye(32, dtype=np.float32), "linear.bias": np.zeros(32, np.float32)}
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    kind = "sentence_transformers.models.Dense"
    change_modules(folder, lambda m: m.insert(2, {"idx": 5, "name": "5", "path": "5_Dense", "type": kind}))


def as_pickle(folder: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def linked(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


POOLING, LENGTH, SETTINGS = "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
NEW_TYPE = "sentence_transformers.sentence_transformer.modules.Pooling"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no modules": (lambda f: (f / "modules.json").unlink(), "every reader guesses the pooling"),
    "no pooling": (lambda f: change_modules(f, lambda m: m.pop(1)), "has no Pooling after the Transformer"),
    "new types": (lambda f: change_modules(f, lambda m: m[1].update(type=NEW_TYPE)), "5.4 and later alone"),
    "missing folder": (lambda f: shutil.rmtree(f / "1_Pooling"), "names the folder 1_Pooling, which is missing"),
    "both poolings": (lambda f: change(f, POOLING, pooling_mode="cls"), "in the old and the new form"),
    "pools nothing": (lambda f: change(f, POOLING, pooling_mode_mean_tokens=False), "chooses no pooling"),
    "wrong size": (lambda f: change(f, POOLING, word_embedding_dimension=99), "expects 99 dimensions"),
    "too long": (lambda f: change(f, LENGTH, max_seq_length=9999), "9999 is beyond the model's"),
    "no length": (lambda f: change(f, LENGTH, max_seq_length=...), "doesn't say the longest text"),
    "default prompt": (lambda f: change(f, SETTINGS, default_prompt_name="web"), "'web' is none of the prompts"),
    "passage": (lambda f: set_prompts(f, {"passage": "passage: "}), "under 'passage' or 'corpus'"),
    "no blank": (lambda f: set_prompts(f, {"query": "query:"}), "ends without a blank"),
    "dot": (lambda f: change(f, SETTINGS, similarity_fn_name="euclidean"), "declares similarity 'euclidean'"),
    "pickle": (as_pickle, "pickles (.bin) alone"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "are missing: no .safetensors"),
    "nan": (lambda f: change_weights(f, with_nan), "holds NaN or infinite numbers"),
    "zeros": (lambda f: change_weights(f, with_zeros), "is all zeros"),
    "fewer layers": (lambda f: change(f, "config.json", num_hidden_layers=1), "says 1 layers, the weights hold 2"),
    "cut file": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(40)), "can't be read"),
    "no vocabulary": (
        lambda f: [p.unlink() for n in ("tokenizer.json", "vocab.txt") if (p := f / n).exists()],
        "no vo",
    ),
    "lower case": (lambda f: change(f, "tokenizer_config.json", do_lower_case=False), "do_lower_case is False"),
    "code": (lambda f: (f / "modeling.py").write_text("raise SystemExit"), "is code, which no reader needs"),
    "auto_map": (lambda f: change(f, "config.json", auto_map={"AutoModel": "x.Y"}), "needs code from the folder"),
    "adapter": (lambda f: change(f, "adapter_config.json", peft_type="LORA"), "lies beside whole weights"),
    "link": (linked, "leads out of the folder"),
    "family": (
        lambda f: change(f, "config.json", _name_or_path="intfloat/e5-small-v2"),
        "family is used with 'query: '",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "is missing: no licence"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_model(tmp_path_factory.mktemp("doctor") / "sound")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(sound: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    plant, said = FAULTS[name]
    plant(folder)
    complaints = examine(folder, load=False).complaints
    assert any(said in complaint.said for complaint in complaints), complaints


def test_padding_that_is_not_masked(sound: Path, tmp_path: Path) -> None:
    """With a padding token that the model takes for a word, the longest text of a batch changes the others."""
    folder = shutil.copytree(sound, tmp_path / "model")
    change(folder, POOLING, pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
    assert examine(folder).is_sound
    code = (folder / "tokenizer_config.json").read_text()
    change(folder, "tokenizer_config.json", model_input_names=["input_ids"])
    assert any("padding isn't masked" in one.said for one in examine(folder).complaints), code


@pytest.mark.parametrize(
    "variant",
    [
        *(
            "as it is",
            "cls",
            "prompts",
            "document prompt",
            "shorter",
            "half",
            "no default",
            "chinese prompt",
            "extra file",
        ),
        *("max", "dense", "longer card", "licence list", "similarity dot", "no settings", "hidden file", "own prompt"),
        *("vocab.txt", "named positions", "moved"),
    ],
)
def test_sound_folders_raise_no_alarm(sound: Path, tmp_path: Path, variant: str) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    if variant == "cls":
        change(folder, POOLING, pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    if variant == "prompts":
        set_prompts(folder, {"query": "query: ", "document": "passage: "})
    if variant == "document prompt":
        set_prompts(folder, {"passage": "passage: ", "document": "passage: "})
    if variant == "chinese prompt":
        set_prompts(folder, {"query": "为这个句子生成表示以用于检索相关文章："})
    if variant == "shorter":
        change(folder, LENGTH, max_seq_length=16)
    if variant == "no default":
        change(folder, SETTINGS, default_prompt_name=None)
    if variant == "extra file":
        (folder / "notes.txt").write_text("kept")
    if variant == "half":
        change_weights(folder, lambda t: t.update({name: value.astype(np.float16) for name, value in t.items()}))
    if variant == "max":
        change(folder, POOLING, pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    if variant == "dense":
        add_dense(folder)
    if variant == "longer card":
        (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\n---\n" + "text\n" * 99)
    if variant == "licence list":
        (folder / "README.md").write_text("---\nlicense:\n- mit\n- apache-2.0\n---\n")
    if variant == "similarity dot":  # of unit norm, dot is cosine
        change_modules(folder, normalised)
        change(folder, SETTINGS, similarity_fn_name="dot")
    if variant == "no settings":
        (folder / SETTINGS).unlink()
    if variant == "hidden file":
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    if variant == "own prompt":
        set_prompts(folder, {"query": "", "document": "", "clustering": "group: "})
    if variant == "vocab.txt":
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    if variant == "named positions":
        change(folder, "config.json", position_embedding_type="absolute")
    if variant == "moved":
        folder = folder.rename(tmp_path / "e5-is-not-in-this-name".replace("e5", "five"))
    examination = examine(folder)
    assert examination.is_sound, examination.complaints
    expected = ["float16"] if variant == "half" else []
    assert all(any(word in one.said for word in expected) for one in examination.complaints), examination.complaints
    assert len(examination.readers) == 8


def test_all_embeddings_alike(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")

    def flatten(tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            value[:] = 0.1 if "bias" in name else 0

    change_weights(folder, flatten)
    assert any("every text the same embedding" in one.said for one in examine(folder).complaints)


def test_texts_of_the_user(cli: Cli, sound: Path, beir: Path) -> None:
    result = cli("doctor", sound, "--data", beir, "--format", "json")
    told = json.loads(result.stdout)
    assert told["sound"]
    assert told["profile"]["dimensions"] == 32
    assert told["profile"]["poolings"] == ["mean"]
    assert cli("doctor", sound, "--data", beir, "--files-only", code=2)


def test_a_mended_copy(cli: Cli, sound: Path, tmp_path: Path) -> None:
    """What can be mended is, the rest says so, and the copy embeds as the sound model with the prompts it meant."""
    folder = shutil.copytree(sound, tmp_path / "model")
    for name in ("new types", "too long", "default prompt", "passage", "pickle", "code", "adapter", "no card"):
        FAULTS[name][0](folder)
    before = examine(folder, load=False)
    assert sum(complaint.mended for complaint in before.complaints) >= 7
    result = cli("doctor", folder, "--fix", tmp_path / "fixed")
    assert "The copy" in result.stdout
    left = examine(tmp_path / "fixed")
    assert left.is_sound, left.complaints
    assert [one.said for one in left.complaints if "licence" not in one.said] == []
    one, two = (load_encoder(model, device="cpu") for model in (sound, tmp_path / "fixed"))
    assert np.allclose(one.encode(["passage: a fox"]), two.encode_document(["a fox"]), atol=1e-6)
    assert not list((tmp_path / "fixed").glob("*.py"))
    assert json.loads((tmp_path / "fixed/run.json").read_text())["mended"]
    assert "exists" in cli("doctor", folder, "--fix", tmp_path / "fixed", code=2).output


def test_faults_end_in_3_and_classifiers_are_refused(cli: Cli, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    FAULTS["wrong size"][0](folder)
    cli("doctor", folder, "--files-only", code=3)
    cli("doctor", sound, "--files-only")
    change(folder, "config.json", architectures=["BertForSequenceClassification"])
    (folder / "modules.json").unlink()
    with pytest.raises(UsageError, match="is a classifier"):
        examine(folder)
    with pytest.raises(UsageError):
        fix(sound, sound)


def test_it_counts_the_texts_of_the_user_that_are_cut(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"_id": str(number), "text": "the boat waits " * (30 if number < 3 else 2)} for number in range(10)]
    data = write_lines(tmp_path / "corpus.jsonl", rows)
    assert "10, 3 cut at 48 tokens" in cli("doctor", tiny, "--data", data).stdout
    content = json.loads(cli("doctor", tiny, "--data", data, "--format", "json").stdout)
    assert content["texts"] == {"texts": 10, "longest": 48, "cut": 3}


def test_what_is_no_model_is_said_in_a_line(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("a")
    assert "is not a model folder" in cli("doctor", tmp_path / "notes", code=1).stderr
    export = tmp_path / "int8"
    export.mkdir()
    (export / "export.json").write_text('{"to": "onnx-int8"}')
    (export / "config.json").write_text("{}")
    for command in (("doctor", export), ("plug", export, "langchain")):
        assert "is an export, which bge-cocktail serve reads" in cli(*command, code=1).stderr
