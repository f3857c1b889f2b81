"""English text for pretraining: the prose of a Python installation, or the user's files.

A corpus is a list of documents, a document a list of paragraphs. The default text is what every
Python carries: the language reference behind `help()`, and the docstrings and comments of the
standard library. Sources are parsed, never imported, and the order depends on names alone.
Knows nothing of tokens, models or torch.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Document = tuple[str, ...]

# Left out of the default text: what is not prose (tests, tables), and what distributions of Python
# ship or leave out as they like, so that one Python version gives one text everywhere.
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    | {"distutils", "ensurepip", "tkinter", "turtledemo", "encodings", "lib-dynload"}
)
HELD_OUT_FRACTION = 0.1
MIN_WORDS = 5
# English prose measures 0.95 to 1.0 letters and spaces, argument tables and code 0.5 to 0.8.
MIN_LETTER_FRACTION = 0.85

_HEADING = re.compile(r"^\s*([=\-~^*\"'#+.`])\1{2,}\s*$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")
_ROLE = re.compile(r":[a-zA-Z:]+:`~?\.?([^`]*)`")
_MARKUP = re.compile(r"`|\||(?<!\w)\*{1,2}(?=\w)|(?<=\w)\*{1,2}(?!\w)")
_DIRECTIVE = re.compile(r"^\s*\.\.\s")
_SPACES = re.compile(r"\s+")
_DEEPER = " " * 80  # than any line of code
# Lines of code in what does not parse as a whole: Python 2, or more prose below it.
_STATEMENT = re.compile(r"\s*(?:def \w+\(.*\):|import \w+)$")


@dataclass(frozen=True)
class Corpus:
    """Training and held-out documents, and the digest that names this exact text."""

    train: list[Document]
    held_out: list[Document]
    source: str
    digest: str

    @property
    def n_bytes(self) -> int:
        documents = (*self.train, *self.held_out)
        return sum(len(text.encode()) + 1 for document in documents for text in document)


def load_corpus(files: Iterable[Path] = ()) -> Corpus:
    """Read the given files, or the Python installation's own text where there are none.

    Raises:
        ValueError: the text has fewer than two documents, or a file cannot be read or is not UTF-8.
    """
    files = list(files)
    if files:
        source = ", ".join(str(file) for file in files)
        return split_corpus([d for file in files for d in file_documents(file)], source)
    return split_corpus(python_documents(), f"Python {sysconfig.get_python_version()} installation")


def split_corpus(documents: Iterable[Document], source: str) -> Corpus:
    """Hold out a tenth of the documents: those whose text has the smallest SHA-256.

    The choice depends on the texts alone, so that adding a document moves at most one across.
    """
    kept = list(without_repeats(documents))
    if len(kept) < 2:
        raise ValueError(
            f"corpus: {source} has {len(kept)} document(s) of prose, expected at least 2 (one to"
            " train on, one held out); separate documents by blank lines or give more text"
        )
    digests = [hashlib.sha256("\n".join(document).encode()).hexdigest() for document in kept]
    n_held_out = max(1, round(len(kept) * HELD_OUT_FRACTION))
    chosen = set(sorted(range(len(kept)), key=digests.__getitem__)[:n_held_out])
    return Corpus(
        train=[document for i, document in enumerate(kept) if i not in chosen],
        held_out=[document for i, document in enumerate(kept) if i in chosen],
        source=source,
        digest=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """Drop paragraphs seen before: the standard library repeats many, also across the split."""
    seen: set[str] = set()
    for document in documents:
        fresh = tuple(dict.fromkeys(text for text in document if text not in seen))
        seen.update(fresh)
        if fresh:
            yield fresh


def file_documents(file: Path) -> Iterator[Document]:
    """Documents of a text file in the format of Google's BERT: blank lines between documents."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"corpus: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"corpus: {file} is not UTF-8 text ({error.reason} at byte {error.start});"
            " convert it first"
        ) from error
    for block in re.split(r"\n\s*\n", text):
        lines = tuple(_SPACES.sub(" ", line).strip() for line in block.splitlines())
        if any(lines):
            yield tuple(line for line in lines if line)


def python_documents(stdlib: Path | None = None) -> Iterator[Document]:
    """Documents of this Python: one per help topic and one per source file, in order of name."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart; the rest is text enough
        topics = {}
    for name in sorted(topics):
        yield tuple(prose(topics[name]))
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    for file in source_files(root):
        yield source_document(file.read_bytes())


def source_files(root: Path) -> list[Path]:
    """Python sources below `root`, sorted by their path's parts on every file system."""
    found = []
    folders = [root]
    while folders:
        for entry in folders.pop().iterdir():
            if entry.is_dir():
                if entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("config-"):
                    folders.append(entry)
            elif entry.suffix == ".py" and not entry.name.startswith("_sysconfigdata"):
                found.append(entry)
    return sorted(found, key=lambda file: file.relative_to(root).parts)


def source_document(source: bytes) -> Document:
    """Docstrings, then comments, of one source file; empty where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody's docstring
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, documented))
    docstrings = (ast.get_docstring(node) or "" for node in nodes)
    try:
        texts = [*docstrings, *comment_blocks(source)]
    except (SyntaxError, tokenize.TokenError):
        texts = [*docstrings]
    return tuple(paragraph for text in texts for paragraph in prose(text))


def comment_blocks(source: bytes) -> Iterator[str]:
    """Comments of two or more whole lines; neighbouring lines of one column are one block."""
    block: list[str] = []
    place = (0, 0)
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if token.start != (place[0] + 1, place[1]):
            if len(block) > 1:
                yield "\n".join(block)
            block = []
        block.append(token.string.lstrip("#!:"))
        place = token.start
    if len(block) > 1:
        yield "\n".join(block)


def prose(text: str) -> Iterator[str]:
    """Paragraphs of `text` that read as English, unwrapped and without markup.

    Dropped: sessions (`>>>`), blocks indented below a line that ends in `::`, headings, tables,
    commented-out code, and whatever has few words or many signs.
    """
    for lines in paragraphs(text):
        plain = _SPACES.sub(" ", _MARKUP.sub("", _ROLE.sub(r"\1", " ".join(lines)))).strip()
        plain = plain.replace("::", ":")
        if is_prose(plain) and not is_code(lines):
            yield plain


def paragraphs(text: str) -> Iterator[list[str]]:
    """Groups of lines between blank lines and bullets, without literal blocks and sessions.

    The lines keep their indentation, by which code is known.
    """
    lines: list[str] = []
    literal_below = -1  # lines indented deeper than this column belong to a literal block
    for line in [*text.expandtabs().splitlines(), ""]:
        column = len(line) - len(line.lstrip())
        if literal_below >= 0 and line.strip():
            if column > literal_below:
                continue
            literal_below = -1
        bullet = _BULLET.match(line)
        if lines and (bullet or not line.strip()):
            if not any(previous.lstrip().startswith((">>>", "... ")) for previous in lines):
                yield lines
            lines = []
        if not line.strip() or _HEADING.match(line) or _DIRECTIVE.match(line):
            continue
        lines.append(line[bullet.end() :] if bullet else line)
        if line.rstrip().endswith("::"):
            literal_below = column


def is_prose(text: str) -> bool:
    """Tell English from tables and signs, by counting."""
    words = text.split()
    if len(words) < MIN_WORDS:
        return False
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return letters >= MIN_LETTER_FRACTION * len(text)


def is_code(lines: list[str]) -> bool:
    """Tell whether the lines are Python, or its beginning, up to the header of a block."""
    if any(map(_STATEMENT.match, lines)):
        return True
    code = textwrap.dedent("\n".join(lines))
    return any(map(is_python, (code, f"{code}\n{_DEEPER}pass", " ".join(code.split()))))


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
