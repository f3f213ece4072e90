"""A model folder looked over: its faults, what each reader will make of it, and a copy in which faults are mended."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import new_folder, read_json, read_object, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, begin_findings, describe_run, files_under, hash_path, noted_findings
from bge_cocktail.data.beir import corpus_of, read_corpus
from bge_cocktail.data.readers import BadRows, kind_of, rows_of_file
from bge_cocktail.data.record_files import read_records
from bge_cocktail.models.card import CARD_FILE, Parent, read_front, write_card
from bge_cocktail.models.embed import TokenCounter
from bge_cocktail.models.folder import is_classifier, model_folder, refuse_export
from bge_cocktail.models.layers import layer_count
from bge_cocktail.models.layout import (
    TOKENIZER_FILES,
    make_portable,
    modules_of,
    positions_of,
    tokenizer_length,
    transformer_folder,
)
from bge_cocktail.models.profile import ModelProfile, model_profile
from bge_cocktail.models.prompts import SETTINGS_FILE, declared_prompts, set_prompts
from bge_cocktail.options import EncodeOptions

Severity = Literal["fault", "caution"]
_PROBES = ("how is a cocktail made?", "Shake the parts with ice and strain.", "The library opens at nine on weekdays.")
# families that are tuned with prompts, by what their names hold: (query, document)
_FAMILY_PROMPTS = {
    r"\be5\b(?!.*instruct)": ("query: ", "passage: "),
    r"bge-(small|base|large)-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    r"nomic-embed": ("search_query: ", "search_document: "),
}
_PORTABLE = "sentence_transformers.models."
_KNOWN_MODULES = frozenset(("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout", "StaticEmbedding"))


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is wrong with a model folder.

    Attributes:
        severity: A fault gives other embeddings or none; a caution is what a user should know.
        where: The file, or the part of the model.
        said: What is wrong, with what was seen.
        cure: What to do about it.
        mended: Whether `fix` does it.
    """

    severity: Severity
    where: str
    said: str
    cure: str
    mended: bool = False


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found in a model folder.

    Attributes:
        model: As the user named it.
        profile: What it declares; None where that can't be told.
        complaints: Faults first.
        readers: What each reader makes of it, by the reader's name.
        findings: What a look at the user's texts found, in the words of `core.runs.FINDINGS`.
        texts: How many texts of the user there are, how many tokens are read of each, how many are cut there.
    """

    model: str
    profile: ModelProfile | None
    complaints: list[Complaint]
    readers: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not any(complaint.severity == "fault" for complaint in self.complaints)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        profile = None if self.profile is None else {**asdict(self.profile), "folder": str(self.profile.folder)}
        complaints = [asdict(complaint) for complaint in self.complaints]
        return {
            "model": self.model,
            "sound": self.is_sound,
            "profile": profile,
            "complaints": complaints,
            "readers": self.readers,
            "findings": self.findings,
            "texts": self.texts,
        }


def examine(name: str | Path, *, data: Sequence[str] = (), device: str = "auto", load: bool = True) -> Examination:
    """Look a model folder over, file by file, then load it and see what it makes of texts.

    Args:
        name: A folder or a hub name.
        data: Texts of the user, embedded to see how many are cut or unknown.
        device: Where they are embedded.
        load: Whether the model is loaded; without, only its files are looked at.

    Raises:
        DataError: No such model.
        UsageError: A classifier.
    """
    folder = _any_folder(name)
    if is_classifier(folder):
        raise UsageError(f"{name} is a classifier; doctor looks at encoders")
    complaints: list[Complaint] = []
    for check in _CHECKS:
        try:
            complaints += check(folder)
        except DataError as error:
            said = str(error)
            if all(said != complaint.said for complaint in complaints):
                complaints.append(Complaint("fault", str(folder), said, "repair or fetch this file again"))
    try:
        profile = model_profile(folder)
    except CocktailError as error:
        if not complaints:
            complaints.append(Complaint("fault", str(folder), str(error), "see the message"))
        profile = None
    readers = {} if profile is None else {reader: of(profile) for reader, of in _READERS.items()}
    findings: list[dict[str, Any]] = []
    texts: dict[str, int] = {}
    if profile is not None and data:
        counter = TokenCounter(profile.folder)
        longest = counter.limit or profile.max_length or 0
        cut = sum(counter(text) > longest for text in data) if longest else 0
        texts = {"texts": len(data), "longest": longest, "cut": cut}
    if profile is not None and load:
        begin_findings()
        complaints += _behaviour(profile, list(data), device)
        findings = noted_findings()
    complaints.sort(key=lambda complaint: complaint.severity != "fault")
    return Examination(str(name), profile, complaints, readers, findings, texts)


def _any_folder(name: str | Path) -> Path:
    """Return a model's folder, also one that every other command refuses, if anything of a model is in it.

    Raises:
        DataError: Nothing is; or it is an export.
    """
    folder = Path(name)
    if not folder.is_dir() or not any(any(folder.glob(pattern)) for pattern in _OF_A_MODEL):
        return model_folder(name)
    refuse_export(name, folder)
    return folder


_OF_A_MODEL = (
    "modules.json",
    "config*.json",
    "*.safetensors",
    "*.bin",
    "tokenizer*",
    "vocab*",
    "[0-9]_*",
    "export.json",
)


def texts_of(path: Path) -> list[str]:
    """Return the documents of a corpus, of a BEIR folder or of records, for `examine`.

    Raises:
        DataError: There are none to be read.
    """
    corpus = corpus_of(path) if path.is_dir() else None
    if corpus is not None:
        return read_corpus(corpus)
    if path.is_file() and kind_of(path):
        _, first = next(rows_of_file(path, BadRows()), ("", {}))
        if isinstance(first, dict) and "text" in first and "label" not in first:
            return read_corpus(path)
    texts = [text for record in read_records(path) for text in (*record.pos, *record.neg)]
    return list(dict.fromkeys(texts))


# --- the folder's files ------------------------------------------------------------------------------------------


def _check_modules(folder: Path) -> Iterator[Complaint]:
    path = folder / "modules.json"
    if not path.is_file():
        cure = "bge-cocktail merge MODEL --pooling cls -o OUT (or mean, lasttoken) writes it"
        yield Complaint("fault", "modules.json", "is missing, so every reader guesses the pooling (mean)", cure)
        return
    modules = modules_of(folder)
    kinds = [kind for kind, _ in modules]
    if not {"Transformer", "StaticEmbedding"} & set(kinds):
        yield Complaint("fault", "modules.json", f"has no module that embeds: {', '.join(kinds)}", "take a whole model")
    elif "Transformer" in kinds and "Pooling" not in kinds:
        yield Complaint("fault", "modules.json", "has no Pooling after the Transformer", "add the module that it needs")
    for kind in kinds:
        if kind not in _KNOWN_MODULES:
            yield Complaint(
                "caution", "modules.json", f"module {kind} is known to few readers", "serve it as it is here"
            )
    for module in read_json(path):
        if not str(module["type"]).startswith(_PORTABLE) and module["type"].rsplit(".", 1)[-1] in _KNOWN_MODULES:
            said = f"type {module['type']} is read by sentence-transformers 5.4 and later alone"
            yield Complaint("caution", "modules.json", said, "write the layout that all readers know", mended=True)
            break
    for kind, place in modules:
        if kind not in ("Normalize", "Dropout") and not place.is_dir():
            yield Complaint(
                "fault", "modules.json", f"names the folder {place.name}, which is missing", "fetch it again"
            )


def _check_pooling(folder: Path) -> Iterator[Complaint]:
    for kind, path in _modules(folder):
        if kind != "Pooling":
            continue
        config = read_object(path / "config.json")
        where = f"{path.name}/config.json"
        modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        if "pooling_mode" in config and modes:
            said = "says the pooling in the old and the new form; sentence-transformers 5.3 fails on it"
            yield Complaint("caution", where, said, "keep one of them", mended=False)
        if "pooling_mode" in config and not modes:
            said = "says the pooling in a form that only sentence-transformers 5.4 and later read"
            yield Complaint("caution", where, said, "write the form that all readers know", mended=True)
        if "pooling_mode" not in config and not modes:
            yield Complaint("fault", where, "chooses no pooling", "set one of pooling_mode_* to true")
        size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
        hidden = _config(folder).get("hidden_size")
        if isinstance(hidden, int) and size != hidden:
            yield Complaint("fault", where, f"expects {size} dimensions, the encoder gives {hidden}", f"write {hidden}")
        if config.get("include_prompt") is False and any(declared_prompts(folder).values()):
            said = "leaves the prompt's tokens out of the mean (include_prompt false); TEI, vLLM and llama.cpp can't"
            yield Complaint("caution", where, said, "serve it with what knows it: sentence-transformers, or serve")


def _check_dense(folder: Path) -> Iterator[Complaint]:
    size: Any = None
    for kind, path in _modules(folder):
        config = read_object(path / "config.json") if (path / "config.json").is_file() else {}
        if kind == "Pooling":
            size = config.get("word_embedding_dimension", config.get("embedding_dimension"))
            modes = sum(1 for key, on in config.items() if key.startswith("pooling_mode_") and on is True)
            size = size * max(modes, 1) if isinstance(size, int) else None
        if kind == "Dense":
            if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
                yield Complaint("fault", path.name, "has no weights", "fetch it again")
            if size is not None and config.get("in_features") != size:
                said = f"takes {config.get('in_features')} dimensions, what comes before it gives {size}"
                yield Complaint("fault", f"{path.name}/config.json", said, "take the module of this model")
            size = config.get("out_features")


def _check_weights(folder: Path) -> Iterator[Complaint]:
    path = transformer_folder(folder)
    tensors = sorted(path.glob("*.safetensors"))
    if not tensors:
        if any(path.glob("*.bin")):
            said = "are pickles (.bin) alone, which can hold code"
            yield Complaint("caution", "weights", said, "write them as safetensors", mended=True)
        else:
            yield Complaint("fault", "weights", "are missing: no .safetensors, no .bin", "fetch the model again")
        return
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        for name in sorted(set(shards.values())) if isinstance(shards, dict) else []:
            if not (path / str(name)).is_file():
                yield Complaint("fault", index.name, f"names {name}, which is missing", "fetch it again")
    yield from _check_tensors(path, tensors)


def _check_tensors(path: Path, files: Sequence[Path]) -> Iterator[Complaint]:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    kinds: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    names.append(name)
                    kinds.add(opened.get_slice(name).get_dtype())
                    if opened.get_slice(name).get_dtype() in ("F32", "F16", "F64", "BF16"):
                        values = opened.get_tensor(name).float().numpy()
                        if not np.isfinite(values).all():
                            said = f"tensor {name} holds NaN or infinite numbers"
                            yield Complaint("fault", file.name, said, "take another checkpoint")
                        elif values.size > 1 and "embeddings" not in name and "weight" in name and not values.any():
                            yield Complaint("fault", file.name, f"tensor {name} is all zeros", "fetch it again")
        except (SafetensorError, OSError) as error:
            yield Complaint("fault", file.name, f"can't be read: {error}", "fetch it again")
            return
    if kinds & {"F16", "BF16"}:
        said = f"are {'float16' if 'F16' in kinds else 'bfloat16'}; readers that compute as stored are slow on a CPU"
        yield Complaint("caution", "weights", said, "load them with dtype float32 on a CPU")
    config = read_object(path / "config.json") if (path / "config.json").is_file() else {}
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    held = layer_count(names)
    if isinstance(layers, int) and held and held > layers:
        said = f"says {layers} layers, the weights hold {held}: the rest is not used"
        yield Complaint("fault", "config.json", said, f"write {held}, or take the model's own file")


def _check_tokenizer(folder: Path) -> Iterator[Complaint]:
    path = transformer_folder(folder)
    there = [name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not {"tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"} & set(there):
        yield Complaint("fault", "tokenizer", "has no vocabulary (tokenizer.json or vocab.txt)", "fetch it again")
        return
    if "tokenizer.json" not in there:
        said = "has no tokenizer.json, which TEI and the exports need"
        yield Complaint("caution", "tokenizer", said, "write it with transformers' fast tokenizer", mended=True)
    if (path / "tokenizer.json").is_file():
        content = read_object(path / "tokenizer.json")
        cut = (content.get("truncation") or {}).get("max_length")
        length = _declared(folder)
        if isinstance(cut, int) and isinstance(length, int) and cut < length:
            said = f"cuts at {cut} tokens for readers that use it alone; the model takes {length}"
            yield Complaint("caution", "tokenizer.json", said, "remove 'truncation' from it", mended=True)
        lower = bool((content.get("normalizer") or {}).get("lowercase"))
        config = _read(path / "tokenizer_config.json")
        of_bert = (content.get("normalizer") or {}).get("type") == "BertNormalizer"
        if of_bert and "do_lower_case" in config and bool(config["do_lower_case"]) != lower:
            said = f"do_lower_case is {config['do_lower_case']}, and tokenizer.json has lowercase {lower}"
            yield Complaint("fault", "tokenizer_config.json", said, "make both say what the model was trained with")


def _check_length(folder: Path) -> Iterator[Complaint]:
    path = transformer_folder(folder)
    config = _read(path / "config.json")
    room = positions_of(config)
    declared = _declared(folder)
    if declared is None:
        limit = tokenizer_length(path)
        said = f"doesn't say the longest text; readers take {limit or 'no limit'}"
        yield Complaint("caution", "sentence_bert_config.json", said, "write max_seq_length", mended=limit is not None)
    elif room is not None and declared > room:
        said = f"max_seq_length {declared} is beyond the model's {room} positions"
        yield Complaint("fault", "sentence_bert_config.json", said, f"write {room}", mended=True)


def _check_prompts(folder: Path) -> Iterator[Complaint]:
    settings = _read(folder / SETTINGS_FILE)
    prompts = declared_prompts(folder)
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        said = f"default_prompt_name '{default}' is none of the prompts ({', '.join(prompts) or 'none'})"
        yield Complaint("fault", SETTINGS_FILE, said, "remove it, or name one", mended=True)
    passage = prompts.get("passage") or prompts.get("corpus")
    if passage and not prompts.get("document"):
        said = "has its documents' prompt under 'passage' or 'corpus', which encode_document passes over"
        yield Complaint("fault", SETTINGS_FILE, said, "store it as 'document' too", mended=True)
    for name, text in prompts.items():
        if re.search(r"[:\w]$", text) and text.isascii():
            said = f"the prompt '{name}' ({text!r}) ends without a blank: words run into it"
            yield Complaint("caution", SETTINGS_FILE, said, "check it against the model's card")
    if any(prompts.values()):
        return
    for pattern, (query, document) in _FAMILY_PROMPTS.items():
        if any(re.search(pattern, name, re.IGNORECASE) for name in _family(folder)):
            said = f"declares no prompts, and its family is used with {query!r} before queries"
            said += f" and {document!r} before documents" if document else ""
            yield Complaint("caution", SETTINGS_FILE, said, "store them, unless it was tuned without", mended=True)


def _check_similarity(folder: Path) -> Iterator[Complaint]:
    declared = _read(folder / SETTINGS_FILE).get("similarity_fn_name")
    kinds = [kind for kind, _ in _modules(folder)]
    if declared not in (None, "cosine") and not (declared in ("dot", "dot_product") and "Normalize" in kinds):
        said = f"declares similarity '{declared}'; stores and this tool compare by cosine"
        yield Complaint("caution", SETTINGS_FILE, said, "normalise, or set the store's metric to it")


def _check_extras(folder: Path) -> Iterator[Complaint]:
    code = [file.name for file in folder.rglob("*.py")]
    config = _config(folder)
    if "auto_map" in config:
        said = "needs code from the folder (auto_map); readers refuse it, or run it"
        yield Complaint("caution", "config.json", said, "use an architecture that transformers has")
    elif code:
        yield Complaint("caution", code[0], "is code, which no reader needs", "remove it", mended=True)
    if (folder / "adapter_config.json").is_file() and any(folder.glob("model*.safetensors")):
        said = "lies beside whole weights: some readers load an adapter, others the model"
        yield Complaint("fault", "adapter_config.json", said, "remove it, or fold the adapter in", mended=True)
    outside = [file for file in files_under(folder) if file.is_symlink() and not _inside(file, folder)]
    if outside and "snapshots" not in folder.parts and "snapshots" not in folder.resolve().parts:
        said = "is a link that leads out of the folder: a copy of it will be broken"
        yield Complaint("caution", outside[0].name, said, "copy the file", mended=True)


def _check_card(folder: Path) -> Iterator[Complaint]:
    if not (folder / CARD_FILE).is_file():
        said = "is missing: no licence, no word on how it was made"
        yield Complaint("caution", CARD_FILE, said, "write one", mended=True)
    elif not read_front(folder).get("license"):
        yield Complaint("caution", CARD_FILE, "declares no licence", "add license: to its YAML")


_CHECKS: tuple[Callable[[Path], Iterator[Complaint]], ...] = (
    _check_modules,
    _check_pooling,
    _check_dense,
    _check_weights,
    _check_tokenizer,
    _check_length,
    _check_prompts,
    _check_similarity,
    _check_extras,
    _check_card,
)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    return modules_of(folder) if (folder / "modules.json").is_file() else []


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _config(folder: Path) -> dict[str, Any]:
    return _read(transformer_folder(folder) / "config.json")


def _declared(folder: Path) -> Any:
    """Return the longest text that sentence_bert_config.json says, true or not."""
    return _read(transformer_folder(folder) / "sentence_bert_config.json").get("max_seq_length")


def _inside(file: Path, folder: Path) -> bool:
    return folder.resolve() in file.resolve().parents


def _family(folder: Path) -> list[str]:
    """Return the names by which a model's family can be told."""
    bases = read_front(folder).get("base_model") or []
    names = [bases] if isinstance(bases, str) else [str(base) for base in bases] if isinstance(bases, list) else []
    return [*names, str(_config(folder).get("_name_or_path", "")), folder.name]


# --- what it makes of texts --------------------------------------------------------------------------------------


def _behaviour(profile: ModelProfile, data: list[str], device: str) -> list[Complaint]:
    """Load the model and embed a few texts: alone and in a batch, to see whether padding is masked."""
    import numpy as np

    from bge_cocktail.models.encoder import CachedEncoder

    # nothing from a cache: a text that was embedded alone would be found there
    encoder = CachedEncoder(profile.folder, EncodeOptions(device=device, cache=False))
    try:
        together = encoder.encode_text([*_PROBES, " ".join(_PROBES * 3)])
        alone = np.concatenate([encoder.encode_text([text]) for text in _PROBES])
        if data:
            encoder.encode_document(data)
    except CocktailError as error:
        return [Complaint("fault", "model", str(error), "see the message")]
    found = []
    if (np.abs(together[:3] - together[0]).max()) < 1e-6:
        found.append(Complaint("fault", "model", "gives every text the same embedding", "take another checkpoint"))
    worst = float((together[:3] * alone).sum(axis=1).min())
    if worst < 0.999:
        said = f"embeds a text in a batch otherwise than alone (cosine {worst:.3f}): padding isn't masked"
        found.append(Complaint("fault", "model", said, "set the tokenizer's padding token and side as it was trained"))
    if profile.dimensions is not None and together.shape[1] != profile.dimensions:
        said = f"gives {together.shape[1]} dimensions where its files say {profile.dimensions}"
        found.append(Complaint("fault", "model", said, "mend the sizes in the modules' config.json"))
    return found


# --- who reads it ------------------------------------------------------------------------------------------------

# what each reader's documentation lists (November 2026); what is not there is refused by it with an error
_BY_ALL = frozenset(
    (
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "nomic_bert",
        "modernbert",
        "gemma3_text",
        "mistral",
        "qwen2",
        "qwen3",
    )
)
_TEI = _BY_ALL | {"distilbert", "mpnet", "new", "jina_bert"}
_VLLM = _BY_ALL | {"gemma2", "llama", "new"}
_LLAMA_CPP = _BY_ALL | {"distilbert", "llama", "jina_bert"}
_COMMON_POOLINGS = frozenset(("cls", "mean", "lasttoken"))


def _unportable(profile: ModelProfile) -> str:
    """Return why readers before sentence-transformers 5.4 can't read the layout; empty where they can."""
    content = json.dumps(read_json(profile.folder / "modules.json"))
    if "sentence_transformers.base." in content or "sentence_transformers.sentence_transformer." in content:
        return "fails: the modules' types are of 5.4 and later"
    for kind, path in modules_of(profile.folder):
        if kind == "Pooling" and "pooling_mode" in _read(path / "config.json"):
            return "fails: the pooling is said in the form of 5.4 and later"
    return ""


def _by_prompts(profile: ModelProfile, how: str) -> str:
    return how if profile.prompts.query or profile.prompts.document else "as it is"


def _sentence_transformers_3(profile: ModelProfile) -> str:
    return _unportable(profile) or _by_prompts(profile, "reads it; prompts by encode(..., prompt_name=...)")


def _sentence_transformers_5(profile: ModelProfile) -> str:
    return _unportable(profile) or _by_prompts(profile, "reads it; prompts by encode_query and encode_document")


def _sentence_transformers_6(profile: ModelProfile) -> str:
    return _by_prompts(profile, "reads it; prompts by encode_query and encode_document")


def _transformers(profile: ModelProfile) -> str:
    if not profile.architecture:
        return "can't: static embeddings are no transformer"
    by_hand = [f"pooling ({' + '.join(profile.poolings) or 'none'})"]
    by_hand += ["the Dense module"] if "Dense" in profile.modules else []
    by_hand += ["prompts"] if profile.prompts.query or profile.prompts.document else []
    return f"reads the encoder; by hand: {', '.join(by_hand)}, max_length={profile.max_length}, unit norm"


def _served(profile: ModelProfile, known: frozenset[str], prompts: str, dense: bool) -> str:
    if profile.architecture not in known:
        return f"refuses the architecture '{profile.architecture or 'static'}'"
    if len(profile.poolings) != 1 or profile.poolings[0] not in _COMMON_POOLINGS:
        return f"can't pool {' + '.join(profile.poolings) or 'so'}"
    if "Dense" in profile.modules and not dense:
        return "leaves the Dense module out: other embeddings"
    return _by_prompts(profile, f"reads it; {prompts}")


def _tei(profile: ModelProfile) -> str:
    if not (transformer_folder(profile.folder) / "tokenizer.json").is_file():
        return "fails: no tokenizer.json"
    return _served(profile, _TEI, "prompts by prompt_name in each call", dense=True)


def _vllm(profile: ModelProfile) -> str:
    return _served(profile, _VLLM, "prompts by hand, before the texts", dense=True)


def _infinity(profile: ModelProfile) -> str:
    return _unportable(profile) or _by_prompts(profile, "reads it; prompts by hand, before the texts")


def _llama_cpp(profile: ModelProfile) -> str:
    return _served(profile, _LLAMA_CPP, "prompts by hand, before the texts", dense=False)


_READERS: dict[str, Callable[[ModelProfile], str]] = {
    "sentence-transformers 3.4": _sentence_transformers_3,
    "sentence-transformers 5.3": _sentence_transformers_5,
    "sentence-transformers 6.2": _sentence_transformers_6,
    "transformers": _transformers,
    "text-embeddings-inference": _tei,
    "vLLM": _vllm,
    "infinity": _infinity,
    "llama.cpp's converter": _llama_cpp,
}


# --- a copy that is mended ---------------------------------------------------------------------------------------


def fix(name: str | Path, output: Path, *, overwrite: bool = False) -> Examination:
    """Write a copy of a model in which what can be mended is, and look that over.

    Mended are: the layout, lengths, prompts under other names or those of the family, a default prompt that isn't
    there, adapters and code beside whole weights, links, pickled weights, a missing tokenizer.json or card.

    Args:
        name: A folder or a hub name.
        output: The folder to write.
        overwrite: Replace an older output of this tool.

    Returns:
        What is left.

    Raises:
        DataError: The folder can't be read as a model.
    """
    folder = _any_folder(name)
    refuse_to_replace(output, overwrite, [folder])
    before = examine(name, load=False)
    modules = modules_of(folder)  # without them nothing can be mended
    with new_folder(output, overwrite=overwrite) as new:
        for file in files_under(folder):
            relative = file.relative_to(folder)
            if file.suffix in (".py", ".pyc") or relative.name.startswith("adapter_") or relative.name == RUN_FILE:
                continue
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, new / relative)
        for _, path in modules:
            (new / path.relative_to(folder)).mkdir(parents=True, exist_ok=True)
        _mend(new, folder)
        if not (new / CARD_FILE).is_file():
            made = [f"A copy of `{folder.name}` in which bge-cocktail doctor mended what it could."]
            write_card(new, output.name, made, parents=[Parent(str(name), folder)], relation="finetune")
        mended = [complaint.said for complaint in before.complaints if complaint.mended]
        run = describe_run("doctor", options={}, inputs={str(name): hash_path(folder)}, seconds=0.0, mended=mended)
        write_json(new / RUN_FILE, run)
    return examine(output)


def _mend(new: Path, folder: Path) -> None:
    make_portable(new, max_length=_room(new))
    path = transformer_folder(new)
    _rewrite_weights(path)
    if not (path / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(path, local_files_only=True).save_pretrained(path)
    content = _read(path / "tokenizer.json")
    if content.get("truncation"):
        write_json(path / "tokenizer.json", {**content, "truncation": None})
    settings = _read(new / SETTINGS_FILE)
    prompts = declared_prompts(new)
    if settings.get("default_prompt_name") not in (None, *prompts):
        write_json(new / SETTINGS_FILE, {**settings, "default_prompt_name": None})
    passage = prompts.get("passage") or prompts.get("corpus")
    if passage and not prompts.get("document"):
        set_prompts(new, {"document": passage})
    if not any(prompts.values()):
        for pattern, (query, document) in _FAMILY_PROMPTS.items():
            if any(re.search(pattern, name, re.IGNORECASE) for name in _family(folder)):
                set_prompts(new, {"query": query, "document": document})


def _room(folder: Path) -> int | None:
    room, declared = positions_of(_config(folder)), _declared(folder)
    lengths = [length for length in (room, declared or tokenizer_length(transformer_folder(folder))) if length]
    return min(lengths, default=None)


def _rewrite_weights(path: Path) -> None:
    """Write pickled weights as safetensors; none of a pickle's code is run."""
    import torch
    from safetensors.torch import save_file

    if any(path.glob("*.safetensors")):
        return
    for file in path.glob("pytorch_model*.bin"):
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        # tensors that share memory are written one by one, and in the order of C
        whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, file.with_name(file.name.replace("pytorch_model", "model")).with_suffix(".safetensors"))
        file.unlink()
    (path / "pytorch_model.bin.index.json").unlink(missing_ok=True)
