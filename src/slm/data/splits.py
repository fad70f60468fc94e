"""Settings -> the training and validation datasets of a run: from text, prepared data, token ids, or dummy tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.config import DataConfig, UserError
from slm.data import cache
from slm.data.dataset import TextDataset
from slm.data.formats import is_token_file, open_tokens
from slm.data.manifest import MANIFEST, SHARD_NAME, TOKENIZER, is_ours, read_manifest, read_mark
from slm.data.prepare import EVALUATED_TOKENS, Job, Progress, absolute
from slm.data.prepared import PreparedData
from slm.data.shards import Prepared, open_prepared
from slm.data.sources import BUILT_IN, check_name, find_files, read_corpus, read_texts
from slm.data.survey import FEWEST_DOCUMENTS
from slm.data.tokenizer import TOKENIZERS, Tokenizer, make_tokenizer
from slm.data.tokens import Tokens
from slm.storage import files, listing

DUMMY_TOKENS = 10_000
LARGEST_VOCABULARY = 10_000_000  # unless somebody sets it; the largest that are in use have some 260,000


def load_data(
    config: DataConfig,
    given: Any,
    val_given: Any = None,
    *,
    vocab_size: int,
    max_seq_len: int,
    seed: int,
    recheck: bool,
    asked: Container[str],
    tokenizer: Tokenizer | None = None,
    on_progress: Progress,
) -> PreparedData:
    """The datasets of config.data and config.val_data, or of what is given instead: texts or token ids from Python.

    asked: the names of settings that somebody set. tokenizer: that of a model which is there already; None makes the
    one that the settings say. Raises UserError where there is too little text.
    """
    if given is not None:
        ids, texts = ids_or_texts(given, "data")
        if ids is not None:
            rows, val_rows = Tokens([ids]), _val_rows(config, val_given, on_progress)
            name = "token ids from Python"
            return _from_ids(rows, val_rows, config, max_seq_len, vocab_size, asked, name, tokenizer)
        return _from_text(config, texts, val_given, vocab_size, max_seq_len, recheck, tokenizer, on_progress)
    if config.data in (None, ("dummy",)):
        if val_given is not None or config.val_data is not None:
            raise UserError("val_data: the dummy data has its own validation part; set data too.")
        return _dummy_data(config, vocab_size, max_seq_len, seed)
    names = config.data or ()
    for name in names:
        check_name(name)
    if (prepared := prepared_folder(names, config, vocab_size, asked, recheck, on_progress)) is not None:
        if val_given is not None:
            raise UserError(f"val_data: {names[0]} was prepared with its own validation part. Leave val_data out.")
        if tokenizer and prepared.tokenizer.to_json() != tokenizer.to_json():
            raise UserError(f"{names[0]} was prepared with another tokenizer than this model's: name the text itself.")
        settings = {name: value for name, value in prepared.about["settings"].items() if name != "vocab_size"}
        data = _from_prepared(prepared, max_seq_len, replace(config, **settings))
        return replace(data, prepared_with=settings)
    if (found := token_rows(names, on_progress)) is not None:
        val_rows = _val_rows(config, val_given, on_progress)
        return _from_ids(found, val_rows, config, max_seq_len, vocab_size, asked, ", ".join(names), tokenizer)
    return _from_text(config, None, val_given, vocab_size, max_seq_len, recheck, tokenizer, on_progress)


def bytes_of_text(config: DataConfig, given: Any) -> float | None:
    """About the size of the text before it is read, infinite where that is unknown; None where there is no text."""
    if isinstance(given, Iterator):
        return math.inf
    if given is not None:
        ids = not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1 or isinstance(given, Tensor)
        if ids or not all(isinstance(one, str) for one in given):
            return None
        return sum(len(one.encode("utf-8", "replace")) for one in given)
    if config.data in (None, ("dummy",)) or _is_prepared(config.data) or _token_files(config.data):
        return None
    corpus = read_corpus(config.data or (), text_field=config.text_field, split_documents_on=config.split_documents_on)
    return corpus.text_bytes


def _from_text(
    config: DataConfig,
    texts: Iterable[str] | None,
    val_given: Any,
    vocab_size: int,
    max_seq_len: int,
    recheck: bool,
    tokenizer: Tokenizer | None,
    on_progress: Progress,
) -> PreparedData:
    val_ids, val_texts = (None, None) if val_given is None else ids_or_texts(val_given, "val_data")
    if val_ids is not None:
        raise UserError("val_data is token ids, but the data is text: give texts, too.")
    job = Job(
        config, texts, val_texts, vocab_size=vocab_size, recheck=recheck, tokenizer=tokenizer, on_progress=on_progress
    )
    return _from_prepared(job.run(), max_seq_len, config)


def _from_prepared(prepared: Prepared, max_seq_len: int, config: DataConfig) -> PreparedData:
    about = prepared.about
    train, val = (
        _dataset(tokens, max_seq_len, part, config, about["start_id"])
        for tokens, part in ((prepared.train, "training"), (prepared.val, "validation"))
    )
    return PreparedData(
        train_dataset=train,
        val_dataset=val,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        fingerprint=prepared.fingerprint,
        name=about["name"],
        split=about["split"],
        num_bytes=about["num_bytes"],
        found=tuple(about["found"]),
        folder=prepared.folder,
        many_documents=about["documents"][0] >= FEWEST_DOCUMENTS and prepared.tokenizer.end_id is not None,
        source_bits_per_byte=about["source_bits_per_byte"],
    )


def _dataset(
    tokens: Tokens | Tensor, max_seq_len: int, part: str, config: DataConfig, start_id: int | None = None
) -> TextDataset:
    if len(tokens) < 2:
        raise UserError(
            f"the {part} part of the text has {len(tokens)} token{'s' * (len(tokens) != 1)}: at least 2 are needed, "
            f"one to look at and one to predict. Give more text, another --val_fraction (now {config.val_fraction}), "
            "or --val_data."
        )
    most = min(config.val_tokens, EVALUATED_TOKENS) if part == "validation" else None
    return TextDataset(tokens, max_seq_len, start_id=start_id, max_targets=most)


def _dummy_data(config: DataConfig, vocab_size: int, max_seq_len: int, seed: int) -> PreparedData:
    tokens = torch.randint(0, vocab_size, (DUMMY_TOKENS,), generator=torch.Generator().manual_seed(seed))
    cut = int(DUMMY_TOKENS * (1 - config.val_fraction))
    return PreparedData(
        train_dataset=_dataset(tokens[:cut], max_seq_len, "training", config),
        val_dataset=_dataset(tokens[cut:], max_seq_len, "validation", config),
        tokenizer=None,
        vocab_size=vocab_size,
        fingerprint=f"dummy {seed} {vocab_size}",
        name="dummy",
        split=f"the last {100 * config.val_fraction:.3g} %",
    )


def prepared_folder(
    names: tuple[str, ...],
    config: DataConfig,
    vocab_size: int,
    asked: Container[str],
    recheck: bool,
    on_progress: Progress,
) -> Prepared | None:
    """What slm-prepare left in the one folder or URL that is named; None where that is something else."""
    if (name := _one_folder(names)) is None:
        return None
    manifest = read_manifest(name)
    if manifest is None:
        if read_mark(name):
            raise UserError(f"{name} is an unfinished preparation. Run the same slm-prepare again.")
        found = files.list_names(name)
        if TOKENIZER in found and any(map(SHARD_NAME.fullmatch, found)):
            raise UserError(
                f"{name} holds token files, but its {MANIFEST} is missing or damaged. Remove that folder and run "
                "slm-prepare anew."
            )
        return None
    _check_settings(name, manifest, config, vocab_size, asked)
    folder = name
    if files.is_remote(name):
        on_progress(f"fetching {name}", 0, None)

        def waiting() -> None:
            on_progress("waiting for another process", 0, None)

        folder = cache.local_folder(name, manifest, recheck=recheck, on_wait=waiting)
        recheck = False  # of the copy, just done
    return open_prepared(folder, recheck=recheck)


def _check_settings(
    name: str, manifest: dict[str, Any], config: DataConfig, vocab_size: int, asked: Container[str]
) -> None:
    """Raises UserError where somebody asks for something else than what the data was prepared with."""
    mine: dict[str, Any] = {
        "tokenizer": absolute(config.tokenizer),
        "val_fraction": config.val_fraction,
        "text_field": config.text_field,
        "split_documents_on": config.split_documents_on,
        "val_data": list(map(absolute, config.val_data or ())) or None,
    }
    # The other tokenizers have the size they need; a repeated run asks for the size that was reached.
    if manifest["settings"]["tokenizer"] == "bpe" and vocab_size != manifest["vocab_size"]:
        mine["vocab_size"] = vocab_size
    for setting, value in mine.items():
        prepared = manifest["settings"][setting]
        if setting in asked and value != prepared:
            raise UserError(
                f"{setting} = {value!r}, but {name} was prepared with {setting} = {prepared!r}. Leave {setting} out, "
                "or prepare the data anew."
            )


def _val_rows(config: DataConfig, val_given: Any, on_progress: Progress) -> Tokens | None:
    """The token ids of val_data; None where there is none. Raises UserError where it is text."""
    if val_given is not None:
        ids, texts = ids_or_texts(val_given, "val_data")
        if ids is None:
            read_texts(texts, "val_data")  # says it better, where these are names of files
            raise UserError("val_data is text, but the data is token ids: give token ids, too.")
        return Tokens([ids])
    if config.val_data is None:
        return None
    rows = token_rows(config.val_data, on_progress)
    if rows is None:
        raise UserError(
            f"val_data = {', '.join(config.val_data)}: the data is token ids, so this must name token ids too, in "
            ".npy or .bin files."
        )
    return rows


def _is_prepared(names: tuple[str, ...]) -> bool:
    """True for the one folder or URL of a preparation, finished or not."""
    name = _one_folder(names)
    return name is not None and (bool(read_mark(name)) or read_manifest(name) is not None)


def _one_folder(names: tuple[str, ...]) -> str | None:
    """The one folder or URL that is named; None where that is something else."""
    is_one = len(names) == 1 and names[0].partition(":")[0] not in BUILT_IN and listing.is_folder(names[0])
    return names[0] if is_one else None


def _token_files(names: tuple[str, ...]) -> list[listing.FileInfo]:
    """The files that are named, where all are token files; none where the sources are text."""
    if not any(is_token_file(name) or listing.is_folder(name) or set(name) & set("*?[") for name in names):
        return []
    if any(name.partition(":")[0] in BUILT_IN for name in names):
        return []
    found = [file for name in names for file in find_files(name)]
    return found if all(is_token_file(file.path) for file in found) else []


def token_rows(names: tuple[str, ...], on_progress: Progress) -> Tokens | None:
    """The ids of token files joined in the order of their names; None where the sources are text."""
    found = _token_files(names)
    if not found:
        return None
    for file in found:
        if SHARD_NAME.fullmatch(file.name) and is_ours(folder := file.path.removesuffix(file.name)):
            raise UserError(f"{file.path} is a part of prepared data: name its folder, --data {folder or '.'}")
    waiting = "waiting for another process that downloads the same file"
    local = [cache.local_copy(file, lambda: on_progress(waiting, 0, None)) for file in found]
    return Tokens([open_tokens(path) for path in local])


def _from_ids(
    rows: Tokens,
    val_rows: Tokens | None,
    config: DataConfig,
    max_seq_len: int,
    vocab_size: int,
    asked: Container[str],
    name: str,
    tokenizer: Tokenizer | None,
) -> PreparedData:
    """Token ids that somebody else made: the tokenizer.json that --tokenizer names reads and writes them."""
    if "tokenizer" in asked and tokenizer is None:
        if config.tokenizer in TOKENIZERS:
            raise UserError(
                f"tokenizer = {config.tokenizer!r}, but the data is token ids: name the tokenizer.json that made "
                "them, or leave --tokenizer out."
            )
        tokenizer = make_tokenizer(config.tokenizer, [], vocab_size)
    if not len(rows) or (val_rows is not None and not len(val_rows)):
        raise UserError(f"{'val_data' if len(rows) else name} is empty: there is no token in it.")
    ranges = [one.id_range() for one in (rows, val_rows) if one is not None]
    smallest, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if smallest < 0:
        raise UserError(f"{name} holds the id {smallest}: token ids are 0 or above.")
    if not tokenizer and "vocab_size" not in asked and largest >= LARGEST_VOCABULARY:
        raise UserError(
            f"{name} holds the id {largest}: no vocabulary is that large. Look at what made the ids, or set vocab_size."
        )
    size = tokenizer.vocab_size if tokenizer else vocab_size if "vocab_size" in asked else largest + 1
    if largest >= size:
        raise UserError(
            f"{name} holds the id {largest}, but the vocabulary has {size} tokens, 0 to {size - 1}. Give the "
            "tokenizer.json or the --vocab_size that the ids were made with (a .bin file is read as uint16, "
            "a .u32.bin file as uint32)."
        )
    cut = int(len(rows) * (1 - config.val_fraction))
    train, val = (rows, val_rows) if val_rows is not None else (rows.part(0, cut), rows.part(cut, len(rows)))
    own = ", ".join(config.val_data or ("val_data given in Python",))
    split = f"all of {own}" if val_rows is not None else f"the last {100 * config.val_fraction:.3g} %"
    return PreparedData(
        train_dataset=_dataset(train, max_seq_len, "training", config),
        val_dataset=_dataset(val, max_seq_len, "validation", config),
        tokenizer=tokenizer,
        vocab_size=max(size, 2),
        fingerprint=_fingerprint(train, val),
        name=name,
        split=split,
    )


def _fingerprint(*rows: Tokens) -> str:
    """A SHA-256 over lengths and about a million evenly spread ids of each row, for a huge file takes long to read."""
    digest = hashlib.sha256()
    for row in rows:
        starts = np.linspace(0, max(len(row) - 1, 0), num=1024).astype(np.int64)
        digest.update(len(row).to_bytes(8, "little") + row.windows(starts, 1024).tobytes())
    return digest.hexdigest()


def ids_or_texts(given: Any, name: str) -> tuple[np.ndarray[Any, Any] | None, Any]:
    """Token ids as an array, or texts as they are; one of the two is None."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().to(torch.float32 if given.is_floating_point() else given.dtype).numpy()
    if isinstance(given, np.ndarray):
        if given.ndim == 1 and given.dtype.kind in "iu":
            return given, None
        if given.dtype.kind not in "OUS":
            raise UserError(
                f"{name} is an array of shape {given.shape} and type {given.dtype}: token ids are one row of integers."
            )
        return None, given
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Iterable):
        return None, given
    if iter(given) is not given:  # it can be read again
        return (_integers(given, name), None) if _is_id(next(iter(given), None)) else (None, given)
    items = iter(given)
    looked_at = list(islice(items, 1))
    rest = chain(looked_at, items)
    return (_integers(rest, name), None) if looked_at and _is_id(looked_at[0]) else (None, rest)


def _is_id(item: Any) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _integers(items: Iterable[Any], name: str) -> np.ndarray[Any, Any]:
    items = list(items)
    for index, item in enumerate(items):
        if not _is_id(item):
            raise UserError(
                f"item {index} of {name} is a {type(item).__name__}, after {index} token ids: ids or texts."
            )
    try:
        return np.array(items, dtype=np.int64)
    except OverflowError as error:
        raise UserError(f"{name} holds the id {max(items, key=abs)}: no vocabulary is that large.") from error
