"""The default text is English prose, the same on every machine; the split is clean."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import corpus as corpus_module
from corpus import Corpus, Document, load_corpus, python_documents, source_document, split_corpus
from pretrain_cases import write_corpus


@pytest.fixture(scope="module")
def default_text() -> Corpus:
    return load_corpus()


def paragraphs(documents: list[Document]) -> list[str]:
    return [text for document in documents for text in document]


def numbered(n_documents: int) -> list[Document]:
    return [(f"document {i} has this line", f"and {i} this one") for i in range(n_documents)]


# The default text

SOURCE = b'''"""Prose in the module's docstring is kept as one paragraph,
also where it is wrapped.

    >>> a session is not kept in any case
    [1, 2, 3]

A block below two colons is left out::

    this block looks like English prose but is literal

Heading of a section
====================

* the first bullet is a paragraph of its own
* the second one as well, with ``code`` and :class:`Markup`
"""
import sys

# A comment of two lines or more is prose,
# and this is its second line.

# for name in names: a single line of comment is not

# if commented and code:
#     commented = code or something

# from types import ModuleType
# from names import something

# def method_without(a_body):

def function(argument):
    """Return something to the caller, says this docstring."""
    text = "a string that is not a docstring is not kept"
    return text  # nor is a comment after code kept
'''
PROSE = [
    "Prose in the module's docstring is kept as one paragraph, also where it is wrapped.",
    "A block below two colons is left out:",
    "the first bullet is a paragraph of its own",
    "the second one as well, with code and Markup",
    "Return something to the caller, says this docstring.",
    "A comment of two lines or more is prose, and this is its second line.",
]


def test_source_gives_its_prose_and_no_code() -> None:
    assert list(source_document(SOURCE)) == PROSE


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nfrom types import ModuleType as something",
        "with the_lock:\n    value = other or value",
        "if one and two:\n    something = other\nelse:\n    something = another",
        "class Something(Base):\n    @property\n    def method(self):",
        "async with lock_of_the_object:",
        "def old(self):\n    if self.something: raise Error, 'python two'",
        "yes and no or not maybe or never",
    ],
)
def test_several_lines_of_code_are_no_prose(code: str) -> None:
    """Bug: lines of code were joined before they were parsed, and passed as English."""
    words = "an English sentence with enough words in it"
    assert list(corpus_module.prose(f"{code}\n\n{words}")) == [words]


def test_source_that_does_not_parse_gives_nothing() -> None:
    assert source_document(b"def (:\n") == ()
    assert source_document(b"\xff\xfe\x00") == ()


def test_default_text_has_no_lines_of_code(default_text: Corpus) -> None:
    """Patterns that no English paragraph has; each one is shown what it must find."""
    patterns = {
        r">>> ": ">>> f(x)",
        r"^(async )?def \w+\(": "def f(x): return x",
        r"^import \w+( |$)": "import sys import os",
        r"^from \w+ import ": "from os import path",
        r"^@\w+ (def|class) ": "@property def f(self): ...",
    }
    for pattern, code in patterns.items():
        assert re.search(pattern, code)
        found = [text for text in paragraphs(default_text.train) if re.search(pattern, text)]
        assert not found, f"{pattern}: {found[:3]}"


def test_default_text_is_enough_to_train_on_and_english(default_text: Corpus) -> None:
    assert default_text.n_bytes > 1_000_000
    words = " ".join(paragraphs(default_text.train)).lower().split()
    frequent = sum(word in {"the", "of", "to", "a", "is", "in", "and"} for word in words)
    assert frequent / len(words) > 0.15


@pytest.mark.slow
def test_default_text_is_the_same_each_time(default_text: Corpus) -> None:
    assert load_corpus() == default_text


FILES = {
    "b.py": '"""This is the docstring of the module b."""',
    "a.py": '"""This is the docstring of the module a."""',
    "a/z.py": '"""This is the docstring of the module z."""',
    "a/b/c.py": '"""This is the docstring of the module c."""',
    "a.b/x.py": '"""This is the docstring of the module x."""',
    "test/t.py": '"""This is the docstring of some test module."""',
    "a/tests/t.py": '"""This is the docstring of another test module."""',
    "site-packages/p.py": '"""This is the docstring of somebody\'s package."""',
    "notes.txt": "This file is no source of Python, so it is not read.",
}


def write_tree(root: Path, names: list[str]) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(FILES[name])
    return root


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write_tree(tmp_path / "one", sorted(FILES))
    expected = list(python_documents(one))
    listed = Path.iterdir
    for other_order in (sorted, lambda entries: sorted(entries, reverse=True)):
        monkeypatch.setattr(Path, "iterdir", lambda path, o=other_order: iter(o(listed(path))))
        other = write_tree(tmp_path / other_order.__name__, sorted(FILES, reverse=True))
        assert list(python_documents(other)) == expected
    ends = [document[0].split()[-1] for document in expected[-5:]]
    assert ends == ["c.", "z.", "x.", "a.", "b."]


# The user's text


def test_files_are_used_and_nothing_else(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("first  document\nits second line\n \t\nsecond document\n", encoding="utf-8")
    two.write_text("third döcument\r\n\r\n\r\nx = 1\n", encoding="utf-8")
    text = load_corpus([one, two])
    assert sorted([*text.train, *text.held_out]) == [
        ("first document", "its second line"),
        ("second document",),
        ("third döcument",),
        ("x = 1",),
    ]
    assert text.source == f"{one}, {two}"
    assert text.n_bytes == len("first document its second line second document ") + 16 + 6


def test_errors_name_the_file_and_the_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus: cannot read .*gone\.txt: No such file"):
        load_corpus([tmp_path / "gone.txt"])
    with pytest.raises(ValueError, match=r"corpus: cannot read .*: Is a directory"):
        load_corpus([tmp_path])
    latin = tmp_path / "latin.txt"
    latin.write_bytes("doc\n\nd\xf6cument\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"corpus: .*latin\.txt is not UTF-8 .* at byte 6"):
        load_corpus([latin])
    single = tmp_path / "single.txt"
    single.write_text("only one\ndocument\n")
    with pytest.raises(ValueError, match=r"corpus: .*single\.txt has 1 document.*at least"):
        load_corpus([single])


def test_digest_names_the_text(tmp_path: Path) -> None:
    one = load_corpus([write_corpus(tmp_path / "one.txt")])
    assert load_corpus([write_corpus(tmp_path / "again.txt")]).digest == one.digest
    assert load_corpus([write_corpus(tmp_path / "other.txt", seed=1)]).digest != one.digest


# The split


def assert_clean_split(text: Corpus) -> None:
    assert not set(text.train) & set(text.held_out)
    assert not set(paragraphs(text.train)) & set(paragraphs(text.held_out))
    n_documents = len(text.train) + len(text.held_out)
    assert len(text.held_out) == max(1, round(n_documents * 0.1))


def test_held_out_documents_are_a_tenth_and_disjoint(default_text: Corpus) -> None:
    assert_clean_split(default_text)
    for n_documents in (2, 9, 10, 100):
        assert_clean_split(split_corpus(numbered(n_documents), "test"))


def test_repeated_paragraphs_are_dropped_across_the_split() -> None:
    repeated = [(*document, "a licence that every file has") for document in numbered(100)]
    text = split_corpus([*repeated, *repeated], "test")
    assert_clean_split(text)
    assert len(text.train) + len(text.held_out) == 100
    assert len(paragraphs(text.train) + paragraphs(text.held_out)) == 201


def test_split_does_not_depend_on_the_order_of_documents() -> None:
    forward = split_corpus(numbered(50), "test")
    backward = split_corpus(numbered(50)[::-1], "test")
    assert sorted(forward.held_out) == sorted(backward.held_out)


def test_another_document_moves_at_most_one_across_the_split() -> None:
    for n_documents in range(20, 60):
        before = set(split_corpus(numbered(n_documents), "test").held_out)
        after = set(split_corpus(numbered(n_documents + 1), "test").held_out)
        new = numbered(n_documents + 1)[-1]
        assert len(before ^ (after - {new})) <= 1
