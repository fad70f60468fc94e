"""Settings -> token files, ready for training: read once to know the text, once more to tokenize it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from slm._version import __version__
from slm.config import DataConfig, UserError
from slm.data.encoding import Place, Rows, encode_into
from slm.data.manifest import FORMAT_VERSION, TOKENIZER, clear, mark, read_manifest, read_mark
from slm.data.out import check_ours, check_out, check_same, upload
from slm.data.shards import (
    Prepared,
    ShardRows,
    damaged,
    missing,
    open_prepared,
    read_tokenizer,
    write_manifest,
)
from slm.data.sources import BUILT_IN, Corpus, read_corpus, read_texts
from slm.data.survey import SAMPLE_CHARS, VAL, Split, Survey, take_survey
from slm.data.tokenizer import TOKENIZERS, Tokenizer, make_tokenizer, read_tokenizer_file
from slm.data.tokens import Tokens
from slm.settings import Settings, as_settings, layered
from slm.storage import files
from slm.storage.cached import cache_folder, key_of, locked

IN_MEMORY_BYTES = 4_000_000  # text up to this size is not worth files: it is tokenized in a second or two
READING = 1  # raised whenever a text is read, cut or tokenized otherwise than before
EVALUATED_TOKENS = 1_000_000  # of the validation text, at most
Progress = Callable[[str, int, int | None], None]  # what is being done, bytes done, bytes in all where known


class Job:
    """One text to be prepared: its sources, its tokenizer, and where the tokens go."""

    def __init__(
        self,
        config: DataConfig,
        texts: Iterable[str] | None,
        val_texts: Iterable[str] | None = None,
        *,
        vocab_size: int,
        out: str | None = None,
        in_files: bool = False,
        recheck: bool = False,
        tokenizer: Tokenizer | None = None,
        only_validation: bool = False,
        on_progress: Progress,
    ) -> None:
        """tokenizer: one that is there already. only_validation: all of the text is for validation."""
        self.config, self.vocab_size, self.out = config, vocab_size, out
        self.in_files = in_files or out is not None
        self.recheck, self.on_progress = recheck, on_progress
        self.corpus = self._corpus(config.data or ()) if texts is None else read_texts(texts)
        self.val_corpus = None if val_texts is None else read_texts(val_texts, "val_data")
        if config.val_data:
            self.val_corpus = self._corpus(config.val_data)
        self.only_validation = only_validation
        if tokenizer is not None:
            self.tokenizer_json: str | None = tokenizer.to_json()
        else:
            self.tokenizer_json = None if config.tokenizer in TOKENIZERS else read_tokenizer_file(config.tokenizer)

    def _corpus(self, names: tuple[str, ...]) -> Corpus:
        return read_corpus(names, text_field=self.config.text_field, split_documents_on=self.config.split_documents_on)

    def identity(self, text: Any, val_text: Any) -> dict[str, Any]:
        """Everything that decides the tokens; the texts by what their sources or their content say."""
        config = self.config
        return {
            "text": text,
            "val_text": val_text,
            "text_field": config.text_field,
            "split_documents_on": config.split_documents_on,
            "val_fraction": config.val_fraction,
            "tokenizer": self.tokenizer_json or config.tokenizer,
            "vocab_size": self.vocab_size if config.tokenizer == "bpe" else None,
            "version": [FORMAT_VERSION, READING, SAMPLE_CHARS],
            **({"only_validation": True} if self.only_validation else {}),
        }

    def run(self) -> Prepared:
        """The prepared data: found in the cache, or made now."""
        if self.key is not None:
            return self._found(self.key) or self._made(self.key, None)
        surveys = self._survey()  # texts given in Python are known by their content only
        key = key_of(self.identity(*(survey and survey.content for survey in surveys)))
        return self._found(key) or self._made(key, surveys)

    @property
    def key(self) -> str | None:
        """The name of the prepared data, where the sources tell it before they are read."""
        val_key = self.val_corpus.key if self.val_corpus else []
        return None if None in (self.corpus.key, val_key) else key_of(self.identity(self.corpus.key, val_key))

    def _folder(self, key: str) -> str:
        return self.out or os.path.join(cache_folder(), key)

    def _found(self, key: str) -> Prepared | None:
        folder = self._folder(key)
        found = self._manifest(folder, key)
        if found is None or self.recheck or missing(folder, found):
            return None
        return open_prepared(folder)

    def _manifest(self, folder: str, key: str) -> dict[str, Any] | None:
        """What a finished preparation left. Raises where the folder belongs to another one, or is not ours at all."""
        manifest = read_manifest(folder)
        if manifest:
            check_same(folder, manifest, {"key": key})
        if self.out is not None and manifest is None:
            check_ours(folder)
        return manifest

    def _survey(self) -> tuple[Survey, Survey | None]:
        """What a first reading finds in the text and in the validation text that was named."""
        surveys = [self._survey_of(corpus) for corpus in (self.corpus, self.val_corpus) if corpus]
        return surveys[0], surveys[1] if self.val_corpus else None

    def _survey_of(self, corpus: Corpus) -> Survey:
        what, total = f"reading {corpus.name}", corpus.stored_bytes
        self.on_progress(what, 0, total)
        survey = take_survey(
            corpus,
            characters=self.config.tokenizer == "char" and corpus is self.corpus,
            on_progress=lambda done: self.on_progress(what, done, total),
        )
        if not survey.counts.documents:
            raise UserError(survey.counts.no_text(corpus.name))
        return survey

    def _made(self, key: str, surveys: tuple[Survey, Survey | None] | None) -> Prepared:
        survey, val_survey = surveys or self._survey()
        num_bytes = sum(one.counts.num_bytes for one in (survey, val_survey) if one)
        folder = self._folder(key)
        if num_bytes <= IN_MEMORY_BYTES and not self.in_files and read_manifest(folder) is None:
            return self._in_memory(key, survey, val_survey)
        with locked(folder, self._waiting):
            manifest = self._manifest(folder, key)  # it may be new since the lock was asked for
            same = manifest is not None and manifest["content"] == _content(survey, val_survey)
            if manifest and same and not missing(folder, manifest) and not damaged(folder, manifest):
                return open_prepared(folder)
            if manifest:  # of other bytes than the text has now, or damaged
                clear(folder)
            return self._on_disk(folder, key, survey, val_survey)

    def _waiting(self) -> None:
        self.on_progress("waiting for another process that prepares the same data", 0, None)

    def _in_memory(self, key: str, survey: Survey, val_survey: Survey | None) -> Prepared:
        split = self._split(survey, val_survey)
        tokenizer = self._tokenizer(survey, split)
        rows = Rows(tokenizer.end_id, bracketed=self.corpus.aligned, most_counted=EVALUATED_TOKENS)
        self._encode(rows, Place(), 0, tokenizer, survey, val_survey, split, lambda place, chars: None)
        about = self._about(key, survey, val_survey, split, rows, tokenizer)
        train, val = (Tokens(arrays, vocab_size=tokenizer.vocab_size) for arrays in rows.arrays)
        return Prepared(train, val, tokenizer, about, None)

    def _on_disk(self, folder: str, key: str, survey: Survey, val_survey: Survey | None) -> Prepared:
        split = self._split(survey, val_survey)
        made_from = f"{key} {_content(survey, val_survey)}"
        if read_mark(folder).get("made_from") == made_from:
            tokenizer = read_tokenizer(folder)
        else:
            clear(folder)
            mark(folder, {})
            tokenizer = self._tokenizer(survey, split)
            files.write_bytes(files.join(folder, TOKENIZER), tokenizer.to_json().encode())
        rows = ShardRows(
            folder,
            self.corpus.name,
            made_from,
            tokenizer,
            bracketed=self.corpus.aligned,
            most_counted=EVALUATED_TOKENS,
        )
        if rows.place == Place():
            rows.close()  # from now on the tokenizer need not be made again
        try:
            self._encode(rows, rows.place, rows.chars, tokenizer, survey, val_survey, split, rows.after_batch)
        finally:
            rows.abandon()
        about = self._about(key, survey, val_survey, split, rows, tokenizer)
        write_manifest(folder, {**about, "shards": rows.shards, "dtype": rows.dtype.name})
        return open_prepared(folder)

    def _split(self, survey: Survey, val_survey: Survey | None) -> Split:
        if self.only_validation:
            return Split(cut=0)
        return Split() if val_survey else survey.split(self.config.val_fraction)

    def _tokenizer(self, survey: Survey, split: Split) -> Tokenizer:
        name = self.config.tokenizer
        if self.tokenizer_json is not None:
            return Tokenizer.from_json(self.tokenizer_json, name)
        if name == "char":
            return make_tokenizer(name, survey.characters, self.vocab_size)
        sample = survey.sample_of_training(split)
        if name == "bpe":
            size = sum(map(len, sample))
            self.on_progress(f"learning a vocabulary of up to {self.vocab_size:,} from {size / 1e6:.1f} MB", 0, None)
        return make_tokenizer(name, sample, self.vocab_size)

    def _encode(
        self,
        rows: Rows,
        start: Place,
        chars: int,
        tokenizer: Tokenizer,
        survey: Survey,
        val_survey: Survey | None,
        split: Split,
        after_batch: Callable[[Place, int], None],
    ) -> None:
        """Appends both texts to the rows from the given place on; the validation text's parts follow the others."""
        survey.sample.kept.clear()  # up to 80 MB, not needed again
        parts = self.corpus.num_parts
        total_chars = survey.num_chars + (val_survey.num_chars if val_survey else 0)
        total = survey.counts.num_bytes + (val_survey.counts.num_bytes if val_survey else 0)
        done = chars

        def after(place: Place, new_chars: int) -> None:
            nonlocal done
            done += new_chars
            after_batch(place, new_chars)
            self.on_progress("tokenizing", done * total // max(total_chars, 1), total)

        self.on_progress("tokenizing", done * total // max(total_chars, 1), total)
        if start.part < parts:
            encode_into(rows, self.corpus, split, tokenizer, survey.part_chars, start=start, after_batch=after)
        if self.val_corpus and val_survey:
            val_start = Place(start.part - parts, start.pieces) if start.part >= parts else Place()
            encode_into(
                rows,
                self.val_corpus,
                Split(cut=0),
                tokenizer,
                val_survey.part_chars,
                start=val_start,
                after_batch=lambda place, new: after(Place(place.part + parts, place.pieces), new),
            )
        if done != total_chars:
            rows.discard()
            raise UserError(
                f"{self.corpus.name} changed while it was read: {total_chars:,} characters first, {done:,} the second "
                "time. Nothing was kept; run the same again when nobody writes there any more."
            )
        rows.finish()

    def _about(
        self, key: str, survey: Survey, val_survey: Survey | None, split: Split, rows: Rows, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """The manifest without what concerns files."""
        surveys = [one for one in (survey, val_survey) if one]
        bits, num_bytes = rows.counted
        return {
            "name": self.corpus.name,
            "key": key,
            "content": _content(survey, val_survey),
            "found": _found(self.config, survey, val_survey),
            "num_bytes": sum(one.counts.num_bytes for one in surveys),
            "documents": rows.documents,
            "tokens": rows.tokens,
            "held_out": val_survey is None,
            "split": _in_words(split, rows, self.val_corpus),
            "vocab_size": tokenizer.vocab_size,
            "start_id": tokenizer.end_id if self.corpus.aligned else None,
            "source_bits_per_byte": bits / num_bytes
            if num_bytes and (self.val_corpus or self.corpus).aligned
            else None,
            "settings": {
                "tokenizer": absolute(self.config.tokenizer),
                "vocab_size": self.vocab_size,
                "val_fraction": self.config.val_fraction,
                "text_field": self.config.text_field,
                "split_documents_on": self.config.split_documents_on,
                "val_data": list(map(absolute, self.config.val_data or ())) or None,
            },
            "prepared_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "slm": __version__,
        }


def absolute(name: str) -> str:
    """A source's or a tokenizer's name as it is understood from any folder."""
    known = files.is_remote(name) or name in TOKENIZERS or name.partition(":")[0] in BUILT_IN
    return name if known else os.path.abspath(name)


def _content(survey: Survey, val_survey: Survey | None) -> str:
    return "+".join(one.content for one in (survey, val_survey) if one)


def _found(config: DataConfig, survey: Survey, val_survey: Survey | None) -> list[str]:
    """What the readings met, in words, and which settings met nothing."""
    told = survey.counts.lines()
    counts = [survey.counts]
    if val_survey:
        told += [f"validation: {line}" for line in val_survey.counts.lines()]
        counts.append(val_survey.counts)
    if config.text_field != DataConfig().text_field and not any(one.tables for one in counts):
        told.append(
            f"text_field = {config.text_field!r} has no effect: no table was read (.jsonl, .csv, .tsv, .parquet)"
        )
    if config.split_documents_on is not None and not any(one.separators for one in counts):
        told.append(f"split_documents_on has no effect: '{config.split_documents_on}' stands in no plain text")
    return told


def _in_words(split: Split, rows: Rows, val_corpus: Corpus | None) -> str:
    """The rule that chose the validation text."""
    percent = f"{100 * split.val_fraction:.3g} %"
    if val_corpus:
        return f"all of {val_corpus.name}"
    if split.by_hash:
        return f"{rows.documents[VAL]:,} of {sum(rows.documents):,} documents, {percent} chosen by a hash of their text"
    return f"the last {percent} of the text"


def prepare(
    data: Any = None,
    *,
    out: str | os.PathLike[str] | None = None,
    on_progress: Progress = lambda what, done, total: None,
    **settings: Any,
) -> str:
    """Tokenizes a text into files and returns the folder or URL where they are, for `data` of slm.train.

    data: as for slm.train, without token ids. out: a new folder or a URL; None means the cache, where training finds
    the tokens by itself. settings: those of the text (tokenizer, vocab_size, val_fraction, ...), as for slm.train.
    What an interrupted call left is continued. Raises UserError and OSError.
    """
    keys, texts, val_texts = as_settings(data, settings)
    to = None if out is None else os.fspath(out)
    return prepare_settings(layered(keys, "keyword"), texts, val_texts, out=to, on_progress=on_progress)


def prepare_settings(
    settings: Settings,
    texts: Iterable[str] | None = None,
    val_texts: Iterable[str] | None = None,
    *,
    out: str | None,
    on_progress: Progress,
) -> str:
    """What both `prepare` and `slm-prepare` call: the folder or URL of the token files that the settings describe."""
    if texts is None and settings.data.data in (None, ("dummy",)):
        raise UserError("data = 'dummy' is random tokens: there is nothing to prepare. Name a text.")
    to_url = out is not None and files.is_remote(out)
    job = Job(
        settings.data,
        texts,
        val_texts,
        vocab_size=settings.model.vocab_size,
        out=None if to_url else out,
        in_files=True,
        recheck=settings.options.recheck,
        on_progress=on_progress,
    )
    if out is not None and check_out(out, job.key) and to_url and not settings.options.recheck:
        return out
    prepared = job.run()
    assert prepared.folder is not None
    if not to_url or out is None:
        return prepared.folder
    upload(prepared, prepared.folder, out, again=settings.options.recheck, on_progress=on_progress)
    return out
