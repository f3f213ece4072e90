"""Weight files: hostile, cut off, in all the forms that models come in; what is read is what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_helpers import raw_model, tensors_in
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.runs import hash_file, hash_path
from bge_cocktail.merging.checkpoints import close, hash_of
from bge_cocktail.merging.merge import merge
from bge_cocktail.merging.resolve import open_model
from bge_cocktail.merging.tensors import WeightsFile, count_of, header_bytes, read_header, to_bytes
from bge_cocktail.options import MergeOptions


def header(tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        (10**12).to_bytes(8, "little") + b"{}",
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"1234",
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"12345678extra",
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + b"12345678",
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}) + b"12345678",
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}) + b"12345678",
        header({"a": {"dtype": "F32", "shape": [2]}}) + b"12345678",
        header(["a"]) + b"12345678",
        header({"a": 3}) + b"12345678",
        header(
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            }
        )
        + b"123456",
        b'\x0e\x00\x00\x00\x00\x00\x00\x00{"a":1,"a":1}  ',
        header({"../a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"1234",
        header({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}) + b"12345678",
        header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}) + b"1234",
        header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 2**66]}}) + b"1234",
        b"\x30\x00\x00\x00\x00\x00\x00\x00" + b"[" * 48,
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(DataError, match=str(file)):
        read_header(file)


@given(st.binary(max_size=200))
def test_any_bytes_give_tensors_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    file.write_bytes(content)
    try:
        names = set(read_header(file).tensors)
    except DataError:
        names = None
    # what is accepted is what the format's own library finds there
    assert names is None or names == set(load_file(file))


def test_file_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = raw_model(tmp_path / "copy", 1) / "model.safetensors"
    last = list(read_header(path).tensors.values())[-1]
    with open(path, "r+b") as file:
        file.truncate(last.start)
    with pytest.raises(DataError, match="is cut off"):
        last.read(0, np.empty(count_of(last), np.float32))


def test_header_is_what_safetensors_reads(tmp_path: Path) -> None:
    content = header_bytes([("a", "F32", (2, 1)), ("b", "I64", ())]) + np.float32([1, 2]).tobytes() + bytes(8)
    (tmp_path / "x.safetensors").write_bytes(content)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded["a"].tolist() == [[1], [2]]
    assert loaded["b"].shape == ()


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_bfloat16_rounding_equals_torch(values: list[float]) -> None:
    import torch

    array = np.asarray(values, np.float32)
    ours = np.frombuffer(to_bytes(array, "BF16"), np.uint16)
    theirs = torch.from_numpy(array).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(ours, theirs)


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 90_000)), max_size=12))
def test_a_file_is_hashed_whatever_is_read_of_it(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    content = np.random.default_rng(0).bytes(400_000)
    path.write_bytes(content)
    file = WeightsFile(path)
    for offset, length in reads:
        seen = bytearray(length)
        file.read(offset, memoryview(seen))
        assert seen == content[offset : offset + length]
    assert file.digest() == hash_file(path)
    file.close()


def test_the_hash_of_a_model_is_that_of_its_folder(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "model", 1)
    checkpoint = open_model(str(model), tmp_path)
    assert hash_of(checkpoint) == hash_path(model)
    close(checkpoint)


def read_whole(model: Path, scratch: Path) -> dict[str, np.ndarray]:
    """All tensors of a model as the merger reads them."""
    checkpoint = open_model(str(model), scratch, "mean")
    values = {}
    for (_, name), tensor in checkpoint.tensors.items():
        values[name] = np.empty(count_of(tensor), np.float32)
        tensor.read(0, values[name])
        values[name] = values[name].reshape(tensor.shape)
    return values


def as_pickle(
    model: Path, folder: Path, *, shards: int = 1, extra: dict[str, str] | None = None, **options: Any
) -> Path:
    """The same model in PyTorch's own files."""
    import torch

    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors_in(model).items()}
    for alias, name in (extra or {}).items():
        state[alias] = state[name]
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return folder
    places = {}
    for number in range(shards):
        part = dict(list(state.items())[number::shards])
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save(part, folder / file)
        places.update(dict.fromkeys(part, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("how", [{}, {"shards": 2}, {"_use_new_zipfile_serialization": False}])
def test_pickled_weights(tmp_path: Path, how: dict[str, Any]) -> None:
    models = [raw_model(tmp_path / f"model{seed}", seed) for seed in (1, 2)]
    pickled = as_pickle(models[0], tmp_path / "pickled", **how)
    expected = tensors_in(models[0])
    found = read_whole(pickled, tmp_path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    merge(models, tmp_path / "one", MergeOptions(weights=[0.3, 0.7]))
    merge([pickled, models[1]], tmp_path / "two", MergeOptions(weights=[0.3, 0.7]))
    one, two = (tensors_in(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not list((tmp_path / "two").glob("*.bin*"))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    import torch

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    model = raw_model(tmp_path / "model", 1)
    bad = as_pickle(model, tmp_path / "bad")
    torch.save({"bert.x": Bomb()}, bad / "pytorch_model.bin")
    with pytest.raises(DataError, match="pytorch_model.bin: not a PyTorch file of tensors alone"):
        merge([bad, model], tmp_path / "out")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_pickle_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    model = raw_model(tmp_path / "model", 1)
    bad = as_pickle(model, tmp_path / "bad")
    content = (bad / "pytorch_model.bin").read_bytes()
    (bad / "pytorch_model.bin").write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"pytorch_model.bin: not a PyTorch file"):
        merge([bad, model], tmp_path / "out")


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    """A .bin file holds them twice, a safetensors file once, with or without a note."""
    name, alias = "bert.embeddings.word_embeddings.weight", "lm_head.weight"
    model = raw_model(tmp_path / "model", 1)
    tied = as_pickle(model, tmp_path / "tied", extra={alias: name})
    noted = shutil.copytree(model, tmp_path / "noted")
    save_file(tensors_in(model), noted / "model.safetensors", metadata={"format": "pt", alias: name})
    twice = shutil.copytree(model, tmp_path / "twice")
    save_file({**tensors_in(model), alias: tensors_in(model)[name]}, twice / "model.safetensors")
    for number, models in enumerate([[tied, noted], [noted, tied], [tied, model], [model, tied]]):
        merge(models, tmp_path / f"out{number}")
        assert tensors_in(tmp_path / f"out{number}").keys() == tensors_in(model).keys()
    # the note goes on to the merged file
    assert read_header(tmp_path / "out1/model.safetensors").metadata[alias] == name
    # a model that holds the second on its own loses it to none
    merge([twice, noted], tmp_path / "kept")
    assert alias in tensors_in(tmp_path / "kept")
    with pytest.raises(DataError, match=r"'lm_head.weight' is missing in .*noted \(it is tied there\)"):
        merge([noted, twice], tmp_path / "lost")


def test_an_index_counts_and_not_what_lies_beside_it(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "model", 1)
    sharded = shutil.copytree(model, tmp_path / "sharded")
    every = tensors_in(model)
    places = {}
    for number, names in enumerate((list(every)[::2], list(every)[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: every[name] for name in names}, sharded / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    merge([sharded, model], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    for bad in ("../model/model.safetensors", "/etc/passwd"):
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(DataError, match="leads out of the folder"):
            merge([sharded, model], tmp_path / "bad")
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00003-of-00003.safetensors"}}')
    with pytest.raises(DataError, match="its file model-00003-of-00003.safetensors is missing"):
        merge([sharded, model], tmp_path / "bad")


def adapter(folder: Path, base: Path, seed: int, **config: Any) -> Path:
    """A LoRA adapter of rank 2 on two matrices of a model."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    tensors = {}
    for name in ("encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"):
        rows, columns = tensors_in(base)[f"bert.{name}.weight"].shape
        tensors[f"base_model.model.bert.{name}.lora_A.weight"] = generator.standard_normal((2, columns), np.float32)
        tensors[f"base_model.model.bert.{name}.lora_B.weight"] = generator.standard_normal((rows, 2), np.float32)
    tensors["base_model.model.classifier.weight"] = generator.standard_normal((3, 8), np.float32)
    # a bias that was trained beside the matrices, as the library names it
    bias = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias"
    tensors[bias] = generator.standard_normal(8, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(("config", "scale"), [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5)])
def test_an_adapter_is_folded_into_its_base(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    base = raw_model(tmp_path / "base", 1)
    folder = adapter(tmp_path / "adapter", base, 2, **config)
    thin = load_file(folder / "adapter_model.safetensors")
    merge([folder], tmp_path / "out")
    for name, value in tensors_in(tmp_path / "out").items():
        expected = tensors_in(base)[name].astype(np.float64)
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in thin:
            expected = expected + scale * (
                thin[f"{stem}.lora_B.weight"].astype(np.float64) @ thin[f"{stem}.lora_A.weight"]
            )
        elif f"{stem}.weight" in thin:
            expected = thin[f"{stem}.weight"]
        elif name.endswith("query.bias"):
            expected = thin[stem.removesuffix(".bias") + ".base_layer.bias"]
        assert np.abs(value - expected).max() < 1e-5
    # in a merge it is what its fold is
    merge([folder, base], tmp_path / "one", MergeOptions(weights=[0.5, 0.5]))
    merge([tmp_path / "out", base], tmp_path / "two", MergeOptions(weights=[0.5, 0.5]))
    one, two = (tensors_in(tmp_path / name) for name in ("one", "two"))
    # which of two equal weights is summed first is rounding of numbers that are as large as 10
    assert all(np.allclose(one[name], two[name], rtol=0, atol=4e-6) for name in one)


def test_adapters_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    base = raw_model(tmp_path / "base", 1)
    dora = adapter(tmp_path / "dora", base, 2, use_dora=True)
    with pytest.raises(DataError, match="kind DoRA can't be folded in"):
        merge([dora, base], tmp_path / "out")
    prompt = adapter(tmp_path / "prompt", base, 2, peft_type="PROMPT_TUNING")
    with pytest.raises(DataError, match="kind PROMPT_TUNING"):
        merge([prompt, base], tmp_path / "out")
    from merge_helpers import SHAPES, write_model

    other = write_model(
        tmp_path / "other", {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items() if "query" not in name}
    )
    wrong = adapter(tmp_path / "wrong", base, 2, base_model_name_or_path=str(other))
    with pytest.raises(DataError, match=r"has no tensor 'bert.encoder.layer.0.attention.self.query"):
        merge([wrong, other], tmp_path / "out")


def test_a_plain_encoder_must_say_how_it_pools(tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import load_encoder

    plain = tmp_path / "plain"
    shutil.copytree(
        tiny, plain, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "2_Normalize", "*sentence*")
    )
    with pytest.raises(UsageError, match="say it: `pooling=cls`"):
        merge([plain, plain], tmp_path / "out")
    merge([plain], tmp_path / "mean", MergeOptions(pooling="mean"))
    merge([plain], tmp_path / "cls", MergeOptions(pooling="cls"))
    texts = ["the red dog runs", "a cat"]
    mean, cls, own = (
        load_encoder(path, device="cpu").encode(texts) for path in (tmp_path / "mean", tmp_path / "cls", tiny)
    )
    assert np.abs(mean - own).max() < 1e-6
    assert np.abs(cls - own).max() > 1e-3
    # beside a model that says it, the plain one is taken as said, and refused if that is not the same
    merge([tiny, plain], tmp_path / "both", MergeOptions(pooling="mean", length_from=1))
    with pytest.raises(DataError, match=r"pooling: mean_tokens against cls_token"):
        merge([tiny, plain], tmp_path / "bad", MergeOptions(pooling="cls", length_from=1))


@given(st.lists(st.integers(0, 20_000), max_size=8), st.sampled_from([4096, 8192]))
def test_what_is_written_past_the_cache_is_what_was_given(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], block: int
) -> None:
    """Whatever the sizes of the parts and of the file; blocks are small here, so that many are filled."""
    from bge_cocktail.merging import write as block_writer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_writer, "BLOCK", block)
        path = tmp_path_factory.mktemp("blocks") / "file"
        writer = block_writer.BlockWriter(path)
        parts = [np.random.default_rng(length).bytes(length) for length in lengths]
        for part in parts:
            writer.write(part)
        writer.close()
    assert path.read_bytes() == b"".join(parts)


@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import errno
    import os

    from bge_cocktail.merging.write import _DIRECT, BlockWriter

    real_open, real_write, refused = os.open, os.write, []

    def no_direct_open(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & _DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, "no direct files here")
        return real_open(path, flags, mode)

    def no_direct_write(file: int, content: Any) -> int:
        if not refused:
            refused.append(file)
            raise OSError(errno.EINVAL, "no direct writes here")
        return real_write(file, content)

    monkeypatch.setattr(os, where, no_direct_open if where == "open" else no_direct_write)
    writer = BlockWriter(tmp_path / "file")
    writer.write(b"abc")
    writer.close()
    monkeypatch.undo()
    assert refused
    assert (tmp_path / "file").read_bytes() == b"abc"
