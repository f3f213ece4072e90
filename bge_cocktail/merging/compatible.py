"""What must be the same in models that are merged: form, configuration, tokenizers, a common base."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import hash_file, hash_value
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.plan import is_excluded, tensor_of
from bge_cocktail.merging.tensors import FLOATS, Key, count_of
from bge_cocktail.models.layout import declared_length, modules_of, portable_pooling, transformer_folder
from bge_cocktail.models.prompts import declared_prompts
from bge_cocktail.options import MergeOptions

log = logging.getLogger(__name__)
MANY = 12
# what a configuration says that doesn't change how texts are embedded
WITHOUT_EFFECT = frozenset(
    (
        *("architectures", "auto_map", "chunk_size_feed_forward", "dtype", "finetuning_task", "gradient_checkpointing"),
        *("initializer_factor", "initializer_range", "max_position_embeddings", "output_attentions"),
        *("output_hidden_states", "problem_type", "return_dict", "tie_word_embeddings", "torch_dtype", "use_cache"),
        *("transformers_version", "vocab_size"),
    )
)


def check_alike(
    checkpoints: Sequence[Checkpoint], options: MergeOptions | None = None, base: Checkpoint | None = None
) -> None:
    """Refuse models that are not of the same form, or that read or embed texts in different ways.

    Args:
        checkpoints: The models.
        options: What the user chose to leave out, or to take from one of the models.
        base: The base that task vectors are taken from; it must fit too, but its prompts and length don't matter.

    Raises:
        DataError: With the differences, and the options that settle them.
    """
    options = options or MergeOptions()
    first = checkpoints[0]
    for other in checkpoints[1:]:
        refuse(first, other, differences(first, other, options))
    if base is not None:
        settled = options.model_copy(update={"prompts_from": 1, "length_from": 1})
        refuse(first, base, differences(first, base, settled))


def differences(first: Checkpoint, other: Checkpoint, options: MergeOptions) -> list[str]:
    """Everything that stands against a merge of two models, a line each."""
    configs = (transformer_folder(first.folder), transformer_folder(other.folder))
    lines = [*module_differences(first, other), *config_differences(configs[0], configs[1])]
    lines += tensor_differences(first, other, options)
    if options.prompts_from is None:
        one, two = (prompts_of(model) for model in (first, other))
        if one != two:
            lines.append(f"prompts: {one or 'none'} against {two or 'none'}; choose with `prompts_from=N`")
    if options.length_from is None:
        lengths = [declared_length(model.length_of or model.folder) for model in (first, other)]
        if lengths[0] != lengths[1]:
            lines.append(f"longest text: {lengths[0]} against {lengths[1]} tokens; choose with `length_from=N`")
    if options.tokenizer_from is None:
        folders = [transformer_folder(model.tokenizer_of or model.folder) for model in (first, other)]
        lines += [f"{line}; to take one all the same: `tokenizer_from=N`" for line in tokenizer_differences(*folders)]
    return lines


def refuse(first: Checkpoint, other: Checkpoint, lines: Sequence[str]) -> None:
    """Refuse a merge for such reasons, if there are any.

    Raises:
        DataError: With all of them.
    """
    if lines:
        shown = list(lines[:MANY])
        if len(lines) > MANY:
            shown.append(f"and {len(lines) - MANY} more")
        raise DataError(f"{first.name} and {other.name} can't be merged:\n" + "\n".join(f"  {line}" for line in shown))


def check_numbers(options: MergeOptions, models: int) -> None:
    """Refuse ``prompts_from=5`` of three models.

    Raises:
        UsageError: A number beyond the models.
    """
    for name in ("prompts_from", "length_from", "tokenizer_from"):
        number = getattr(options, name)
        if number is not None and number > models:
            raise UsageError(f"`{name}={number}`: there are {models} models")


_PREFIX = re.compile(r"[a-z_]+\.")


def under_names_of(first: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return a model with its tensors named as the first one's, where only a prefix tells them apart (``bert.``).

    transformers writes such a prefix where a model was saved with a head on top, and reads either.
    """
    mine = {key for key, tensor in first.tensors.items() if tensor.dtype in FLOATS and key[0] == 0}
    theirs = {key for key, tensor in other.tensors.items() if tensor.dtype in FLOATS and key[0] == 0}
    if mine & theirs or not mine or not theirs:
        return other
    for longer, shorter, strip in ((theirs, mine, True), (mine, theirs, False)):
        for prefix in sorted({match[0] for _, name in longer if (match := _PREFIX.match(name))}):
            bare = {(number, name.removeprefix(prefix)) for number, name in longer if name.startswith(prefix)}
            if len(bare & shorter) > len(shorter) / 2:

                def renamed(key: Key, prefix: str = prefix, strip: bool = strip) -> Key:
                    if key[0] != 0:
                        return key
                    return key[0], key[1].removeprefix(prefix) if strip else prefix + key[1]

                return replace(
                    other,
                    files={file: tuple(map(renamed, keys)) for file, keys in other.files.items()},
                    tensors={renamed(key): tensor for key, tensor in other.tensors.items()},
                    aliases={renamed(one): renamed(two) for one, two in other.aliases.items()},
                )
    return other


def prompts_of(model: Checkpoint) -> dict[str, str]:
    """Return the prompts that a model declares and that aren't empty, by name."""
    return {name: text for name, text in declared_prompts(model.prompts_of or model.folder).items() if text}


def module_differences(first: Checkpoint, other: Checkpoint) -> Iterator[str]:
    """In what the modules of two sentence-transformers folders differ, weights apart."""
    with_modules = [(model.folder / "modules.json").is_file() for model in (first, other)]
    if with_modules == [False, False]:
        return
    if not all(with_modules):
        plain = (first, other)[with_modules.index(False)]
        yield f"modules: {plain.name} is a plain transformers folder (no modules.json), so its pooling is unknown"
        return
    mine, theirs = modules_of(first.folder), modules_of(other.folder)
    kinds = [[kind for kind, _ in modules] for modules in (mine, theirs)]
    if kinds[0] != kinds[1]:
        yield f"modules: {', '.join(kinds[0])} against {', '.join(kinds[1])}"
        return
    for (kind, one), (_, two) in zip(mine, theirs, strict=True):
        if kind == "Pooling":
            poolings = [pooling_of(path) for path in (one, two)]
            if poolings[0] != poolings[1]:
                yield f"pooling: {poolings[0]} against {poolings[1]}"
        elif kind == "Transformer":
            lower = [bool(_config(path, "sentence_bert_config.json").get("do_lower_case")) for path in (one, two)]
            if lower[0] != lower[1]:
                yield f"sentence_bert_config.json: do_lower_case {lower[0]} against {lower[1]}"
        else:
            defaults = _MODULE_DEFAULTS.get(kind, {})
            yield from _value_differences(f"{kind} module", {**defaults, **_config(one)}, {**defaults, **_config(two)})
    names = [_similarity(model.folder) for model in (first, other)]
    if names[0] != names[1]:
        yield f"similarity: {names[0]} against {names[1]}"
    cuts = [_config(model.folder, "config_sentence_transformers.json").get("truncate_dim") for model in (first, other)]
    if cuts[0] != cuts[1]:
        yield f"truncate_dim: {cuts[0]} against {cuts[1]}"


# what sentence-transformers takes where a module's file doesn't say it
_MODULE_DEFAULTS: dict[str, dict[str, Any]] = {
    "Dense": {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
}


def config_differences(one: Path, other: Path, besides: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what the same tensors would do differently: other attention heads, another activation.

    What only one configuration says is compared with the default of the architecture.

    Args:
        one: The folder of a transformer.
        other: Another one.
        besides: Names that may differ.
    """
    first, second = _config(one), _config(other)
    # whatever the spelling, also where one of two objects leaves a value to its default
    rope = [[config.get(name) for name in sorted(_ROPE)] for config in (first, second)]
    rope_differs = rope[0] != rope[1]
    alone = {name for name in (first.keys() ^ second.keys()) - besides - _ROPE if not _is_idle(name, first, second)}
    yield from _value_differences("config", first, second, besides | (_ROPE if rope_differs else frozenset()))
    if not alone and not rope_differs:
        return
    meant = [_with_defaults(config) for config in (first, second)]
    for name in sorted(alone):
        values = [config.get(name) for config in meant]
        if None not in meant and not same_json(*values):
            yield f"config: {name} {values[0]} against {values[1]}"
    if rope_differs:
        parts: list[dict[str, Any]] = [config.get("rope_parameters") or {} for config in meant]
        for name in sorted(parts[0].keys() | parts[1].keys()):
            if parts[0].get(name) != parts[1].get(name):
                yield f"config: {name} {parts[0].get(name)} against {parts[1].get(name)}"


_ROPE = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})
# what a configuration may say without need
_NEUTRAL = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "position_embedding_type": "absolute",
    "torchscript": False,
}


def _is_idle(name: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether a name that stands in one configuration only has no effect there."""
    value = first.get(name, second.get(name))
    ids = name.endswith("_token_id") or name in ("id2label", "label2id", "num_labels")
    return ids or _has_no_effect(name) or value in (None, {}, []) or (name in _NEUTRAL and _NEUTRAL[name] == value)


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with all that its architecture has by default, rotary positions in the newer spelling.

    A name that the architecture doesn't know means nothing to it, and is left out.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:  # a model with code of its own: what the file says is all there is
        return config
    try:
        meant: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(config).to_dict()
        known = CONFIG_MAPPING[kind]().to_dict().keys()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"a config.json of kind '{kind}' can't be read: {error}") from None
    decodes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = config.get("is_causal")
    return {name: meant[name] for name in meant if name in known} | {"is_causal": decodes if causal is None else causal}


def _value_differences(
    where: str, one: dict[str, Any], other: dict[str, Any], besides: frozenset[str] = frozenset()
) -> Iterator[str]:
    for name in sorted((one.keys() & other.keys()) - besides):
        if not _has_no_effect(name) and not same_json(one[name], other[name]):
            yield f"{where}: {name} {one[name]} against {other[name]}"


def _has_no_effect(name: str) -> bool:
    return name.startswith("_") or name in WITHOUT_EFFECT or "dropout" in name


_LEAVE_OUT = "; to take such tensors from the first model: `exclude`"


def tensor_differences(first: Checkpoint, other: Checkpoint, options: MergeOptions) -> list[str]:
    """Tensors that only one model has, or that differ in shape or kind of number."""
    lines: list[str] = []
    for key in sorted(first.tensors.keys() | other.tensors.keys()):
        # the same two tensors may be tied with either name kept
        if key not in first.tensors and other.aliases.get(first.aliases.get(key, key)) == key:
            continue
        one = first.tensors.get(key)
        # a tensor that is tied to another one is that one; one that is tied in the first isn't written
        two = other.tensors.get(key) or other.tensors.get(other.aliases.get(key, key))
        present = one or two
        if present is None or is_excluded(key, options):
            continue
        # newer versions of transformers no longer store position numbers and the like
        if one is None or two is None:
            if present.dtype in FLOATS:
                lacking = first if one is None else other
                tied = " (it is tied there)" if key in lacking.aliases else ""
                cure = "" if lines and lines[-1].endswith(_LEAVE_OUT) else _LEAVE_OUT
                lines.append(f"tensor '{key[1]}' is missing in {lacking.name}{tied}{cure}")
        elif one.shape != two.shape:
            lines.append(f"tensor '{key[1]}': shape {list(one.shape)} against {list(two.shape)}")
        elif (one.dtype in FLOATS) != (two.dtype in FLOATS):
            lines.append(f"tensor '{key[1]}': type {one.dtype} against {two.dtype}")
    return lines


def pooling_of(path: Path) -> str:
    """Return how a Pooling module pools, in words."""
    config = portable_pooling(read_object(path / "config.json"), str(path / "config.json"))
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode") and on]
    return " and ".join(sorted(modes)) + ("" if config.get("include_prompt", True) else " without the prompt")


def _similarity(folder: Path) -> str:
    return str(_config(folder, "config_sentence_transformers.json").get("similarity_fn_name") or "cosine")


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
    return read_object(path) if path.is_file() else {}


# of tokenizer.json, what decides which numbers a text becomes; padding and truncation are set anew by whoever loads it
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")


VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
# of BERT's tokenizer
_SLOW_DEFAULTS = {"do_lower_case": True, "tokenize_chinese_chars": True}
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_bos_token", "add_eos_token")


def tokenizer_differences(one: Path, other: Path) -> list[str]:
    """In what the tokenizers of two model folders differ.

    Args:
        one: A folder with tokenizer files.
        other: Another one.

    Returns:
        A line for each difference; none if every text becomes the same numbers.
    """
    fast = [folder / "tokenizer.json" for folder in (one, other)]
    if all(path.is_file() for path in fast):
        settings = [_reading_settings(folder) for folder in (one, other)]
        apart = [
            f"tokenizer: {name} {settings[0][name]} against {settings[1][name]}"
            for name in settings[0]
            if settings[0][name] != settings[1][name]
        ]
        if hash_file(fast[0]) == hash_file(fast[1]):
            return apart
        first, second = (_parts(path) for path in fast)
        lines = apart + [
            f"tokenizer: its {part} differs" for part in PARTS if not same_json(first.get(part), second.get(part))
        ]
        words = _vocabulary_differences(vocabulary(one), vocabulary(other))
        # a vocabulary is told in a better way
        told = [line for line in lines if not words or ("model" not in line and "added" not in line)] + words
        return told or _reading_differences(*fast)
    with_files = [
        any((folder / name).is_file() for name in ("tokenizer.json", *VOCABULARIES)) for folder in (one, other)
    ]
    if with_files[0] != with_files[1]:
        return [f"tokenizer: {(one, other)[with_files.index(False)]} has none"]
    lines = []
    if any(path.is_file() for path in fast):
        known = [vocabulary(folder) for folder in (one, other)]
        lower = [_lowers(folder) for folder in (one, other)]
        if None not in lower and lower[0] != lower[1]:
            lines.append(f"tokenizer: lowercase {lower[0]} against {lower[1]}")
        return lines + (_vocabulary_differences(*known) if all(known) else [])
    for name in VOCABULARIES:
        files = [folder / name for folder in (one, other)]
        if all(file.is_file() for file in files) and hash_file(files[0]) != hash_file(files[1]):
            lines.append(f"tokenizer: {name} differs")
    settings = [_tokenizer_config(folder) for folder in (one, other)]
    lines += [
        f"tokenizer: {name} {settings[0][name]} against {settings[1][name]}"
        for name in SETTINGS
        if settings[0].get(name, _SLOW_DEFAULTS.get(name)) != settings[1].get(name, _SLOW_DEFAULTS.get(name))
    ]
    return lines


# what transformers sets in a tokenizer by its configuration, whatever tokenizer.json says
_OF_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _reading_settings(folder: Path) -> dict[str, Any]:
    """Return what decides how texts are read beside tokenizer.json, as the tokenizer has it once it is loaded."""
    config, normalizer = _tokenizer_config(folder), _parts(folder / "tokenizer.json").get("normalizer")
    within = normalizer if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer" else None
    settings: dict[str, Any] = {}
    for name in SETTINGS:
        own = _OF_NORMALIZER.get(name)
        if own is None:
            settings[name] = bool(config.get(name))
        else:  # of other normalizers, these are no settings
            settings[name] = None if within is None else config.get(name, within.get(own))
    settings["truncation_side"] = config.get("truncation_side", "right")
    settings |= {name: _content(config.get(name)) for name in SPECIAL_TOKENS}
    return settings


SPECIAL_TOKENS = ("cls_token", "sep_token", "unk_token", "bos_token", "eos_token", "pad_token", "mask_token")


def _content(token: Any) -> Any:
    """Return the text of a special token, which files hold as a text or as an object."""
    return token.get("content") if isinstance(token, dict) else token


# first letters of scripts, from each of which words are made
_SCRIPTS = (
    *("A", "a", "À", "Ā", "ʰ", "Α", "Ѐ", "Ա", "א", "ا", "ܐ", "अ", "অ", "ਅ", "અ", "அ", "అ", "ಅ", "അ", "ක", "ก", "ກ"),
    *("ཀ", "က", "ა", "ᄀ", "አ", "Ꭰ", "ក", "Ḁ", "ἀ", "⁰", "₠", "℀", "⅐", "←", "∀", "①", "─", "⠁", "ⴀ", "、", "あ"),
    *("ア", "ㄱ", "㈀", "一", "龍", "가", "ﬀ", "ﭐ", "！", "Ａ", "ｦ", "𝐀", "😀", "🇦"),
)
_PHRASES = (
    *(
        "",
        " ",
        "  two  spaces ",
        "tab\tand\nline\r\n",
        "a\u00a0b\u200bc",
        "e\u0301 é E\u0301 É",
        "don't can’t",
        "U.S.A.",
    ),
    *("1,234.56 10^9 3/4", "C++ x_y z-w", "a@b.com https://x.org/?q=1&r=2#s", "<b>bold</b> &amp;", "$5 €6 £7"),
    *("[CLS] a [SEP] b [MASK] [PAD] [UNK]", "<s> a </s> <mask> <pad> <unk>", "<|endoftext|>", "ſ ß İ ı Σς"),
    *("CamelCase snake_case UPPER", "...!?;:", "“quotes” «guillemets»", "x" * 120),
)


def _probes() -> list[str]:
    """Return a few hundred short texts of all scripts, in all cases, and special ones."""
    words = ["".join(chr(ord(first) + step) for step in (0, 1, 2, 5)) for first in _SCRIPTS]
    cased = [form for word in words for form in (word, word.lower(), word.upper(), f"a {word}, {word}.")]
    return [*cased, *_PHRASES, *(phrase.upper() for phrase in _PHRASES)]


def _reading_differences(one: Path, other: Path) -> list[str]:
    """Return a text that two tokenizer files make different numbers of, though they look alike."""
    from tokenizers import Tokenizer

    readers = []
    for path in (one, other):
        try:
            readers.append(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises no other kind
            raise DataError(f"{path}: not a tokenizer that can be read: {error}") from None
    for reader in readers:
        reader.no_padding()
        reader.no_truncation()
    probes = [text for text in _probes() if text.isprintable() or text.isascii()]
    read = [_encoded(reader, probes, path) for reader, path in zip(readers, (one, other), strict=True)]
    for text, first, second in zip(probes, *read, strict=True):
        if first.ids != second.ids:
            return [f"tokenizer: {text!r} becomes {first.tokens} against {second.tokens}"]
    return []


def _encoded(reader: Any, probes: list[str], path: Path) -> Any:
    try:
        return reader.encode_batch(probes)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library raises no other kinds: plain ones, and Rust's panics, which are none
        raise DataError(f"{path}: not a tokenizer that can be read: {error}") from None


def same_json(first: Any, second: Any) -> bool:
    """Return whether two JSON values mean the same; keys that only one has are defaults that the other leaves out."""
    if isinstance(first, dict) and isinstance(second, dict):
        return all(same_json(first[name], second[name]) for name in first.keys() & second.keys())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(same_json(*pair) for pair in zip(first, second, strict=True))
    # merges of byte pairs are written "a b" by older versions, ["a", "b"] by newer
    if isinstance(first, str) and isinstance(second, list):
        first, second = second, first
    return bool(first == second or (isinstance(second, str) and isinstance(first, list) and first == second.split(" ")))


def vocabulary(folder: Path) -> dict[str, int]:
    """Return the id of each token, added tokens too; empty without tokenizer.json, vocab.txt and vocab.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        text_file, json_file = folder / "vocab.txt", folder / "vocab.json"
        if text_file.is_file():
            lines = text_file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            return {token: token_id for token_id, token in enumerate(lines)}
        listed = read_object(json_file) if json_file.is_file() else {}
        return {str(token): int(token_id) for token, token_id in listed.items()}
    parts = _parts(path)
    try:
        vocab = parts["model"].get("vocab") or {}
        # unigram models list pairs of token and score, in order
        ids = {token: row for row, (token, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        return {**ids, **{str(added["content"]): added["id"] for added in parts.get("added_tokens") or []}}
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{path}: not a tokenizer as the library writes it") from None


def tokenizer_hash(folder: Path) -> str:
    """Return a hash of the vocabulary alone, for people to compare."""
    return hash_value(sorted(vocabulary(folder).items()))[:12]


def _vocabulary_differences(one: dict[str, int], other: dict[str, int]) -> list[str]:
    if one == other:
        return []
    moved = [word for word in one if word in other and one[word] != other[word]]
    missing = [word for word in one if word not in other] + [word for word in other if word not in one]
    example = next(iter(moved or missing))
    return [
        f"tokenizer: vocabularies differ ({len(one)} and {len(other)} tokens, {len(moved)} with another number, "
        f"{len(missing)} in only one; such as {json.dumps(example, ensure_ascii=False)})"
    ]


def _lowers(folder: Path) -> bool | None:
    """Return whether texts are lowercased first; None where nothing says it."""
    path = folder / "tokenizer.json"
    if path.is_file():
        normaliser = _parts(path).get("normalizer")
        return bool(normaliser.get("lowercase")) if isinstance(normaliser, dict) and "lowercase" in normaliser else None
    lower = _tokenizer_config(folder).get("do_lower_case")
    return None if lower is None else bool(lower)


def _parts(path: Path) -> dict[str, Any]:
    content = read_object(path)
    if not isinstance(content.get("model"), dict):
        raise DataError(f"{path}: not a tokenizer as the library writes it")
    return {part: content.get(part) for part in PARTS}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


SAMPLE = 4096
# tuning moves weights by a few per cent (cosine above 0.95); two trainings from different starts give about 0
LEAST_COSINE = 0.5


def sampled_cosine(one: Checkpoint, other: Checkpoint, options: MergeOptions | None = None) -> float | None:
    """Return the cosine between the matrices of two models, from some numbers of each.

    Vectors (biases, norms) are left out: they are alike in all models. None where there are no matrices.
    """
    products = np.zeros(3)
    for key, tensor in one.tensors.items():
        if tensor.dtype not in FLOATS or len(tensor.shape) < 2 or (options and is_excluded(key, options)):
            continue
        if key not in other.tensors and key not in other.aliases:
            continue
        count = count_of(tensor)
        sample = np.empty((2, min(SAMPLE, count)), np.float32)
        first = (count - sample.shape[1]) // 2
        tensor.read(first, sample[0])
        tensor_of(other, key).read(first, sample[1])
        a, b = sample.astype(np.float64)
        products += [float(a @ b), float(a @ a), float(b @ b)]
    size = np.sqrt(products[1] * products[2])
    return float(products[0] / size) if size > 0 else None


def warn_of_other_bases(checkpoints: Sequence[Checkpoint], options: MergeOptions) -> None:
    """Warn of models that can't have been tuned from one base, with the figure."""
    for other in checkpoints[1:]:
        cosine = sampled_cosine(checkpoints[0], other, options)
        if cosine is not None and cosine < LEAST_COSINE:
            log.warning(
                "%s and %s don't seem to be tuned from one base: the cosine between their weights is %.2f, where "
                "tuning leaves more than 0.9; a merge of such models is mostly noise",
                checkpoints[0].name,
                other.name,
                cosine,
            )
