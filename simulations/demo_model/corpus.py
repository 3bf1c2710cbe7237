"""The text: loaded, cleaned, and split into what trains and what is held out.

The first stop of everything the model knows. Output is `Document`s of plain text; tokens, prompts and batches come
later. The split is by hash of the story's number, not of the file: the same story in forty languages falls on one
side, so held-out figures are not helped by having read the translation. Licences: `ATTRIBUTION.md`.
"""

import gzip
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEXT_DIR = Path(__file__).parent / "text"
"""The sources, as published with their licences stated in each record or in ATTRIBUTION.md."""

HELD_OUT_PER_MILLE = 40
"""4 % of stories (and of book pieces): enough bytes per large language to measure, little enough to spare."""

SHORTEST_STORY_BYTES = 80
"""Below this a record is a title page."""

BOOK_PIECE_BYTES = 6000
"""Books are cut at paragraph ends into pieces of about this size, so that they can be split and shuffled."""

STORY_FILES = ("african_storybook_ccby.jsonl.gz", "pratham_storyweaver_en_ccby.jsonl.gz")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with what the card and the attribution file need to know of it."""

    key: str
    """What is hashed for the split: `story/0087` for all translations of a story, `es_quijote/17` for a piece."""
    kind: str
    """`story`, `book` or `rights` (the Universal Declaration of Human Rights)."""
    language: str
    """ISO 639 code."""
    title: str
    text: str
    author: str = ""
    translator: str = ""
    licence: str = "public domain"
    source: str = ""

    @property
    def is_held_out(self) -> bool:
        """Whether the document is kept from training (and from the n-gram baseline's)."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE

    @property
    def plain(self) -> str:
        """Title, blank line, text: how a story is read when nobody asked for it."""
        return f"{self.title}\n\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Book:
    """A public-domain book among the sources."""

    file: str
    language: str
    title: str
    author: str
    first_words: str
    """Where the text proper begins; what stands before is title pages and tables of contents."""
    is_verse: bool = False


BOOKS = (
    Book(
        "es_quijote.txt.gz",
        "es",
        "El ingenioso hidalgo don Quijote de la Mancha (1605, 1615)",
        "Miguel de Cervantes Saavedra",
        "En un lugar de la Mancha",
    ),
    Book("pt_dom_casmurro.txt.gz", "pt", "Dom Casmurro (1899)", "Machado de Assis", "Uma noite destas"),
    Book("pt_quincas_borba.txt.gz", "pt", "Quincas Borba (1891)", "Machado de Assis", "Rubião fitava a enseada"),
    Book("pt_os_lusiadas.txt.gz", "pt", "Os Lusíadas (1572)", "Luís de Camões", "As armas e os barões", is_verse=True),
)

RIGHTS_FILE = "udhr_30lang.jsonl.gz"

ISO_639_1 = {
    "afr": "af", "amh": "am", "eng": "en", "fra": "fr", "hau_NG": "ha", "kin": "rw", "lug": "lg", "por_BR": "pt",
    "por_PT": "pt", "som": "so", "sot": "st", "spa": "es", "ssw": "ss", "swh": "sw", "tir": "ti", "tsn": "tn",
    "ven": "ve", "xho": "xh", "yor": "yo", "zul": "zu",
}  # fmt: skip
"""The Declaration's language codes, where the stories use the two-letter form for the same language."""


def clean(text: str) -> str:
    """NFC, unix line ends, no trailing blanks, no runs of blank lines."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u00a0", " ")
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def load(text_dir: Path = TEXT_DIR) -> list[Document]:
    """Every document, in a fixed order; raises `FileNotFoundError` when a source is missing."""
    documents = [story for file in STORY_FILES for story in _stories(text_dir / file)]
    documents += [piece for book in BOOKS for piece in _book_pieces(text_dir / book.file, book)]
    return documents + list(_rights_pieces(text_dir / RIGHTS_FILE))


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """`(train, held_out)`."""
    return [d for d in documents if not d.is_held_out], [d for d in documents if d.is_held_out]


def _records(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _stories(path: Path) -> Iterator[Document]:
    for record in _records(path):
        text = clean(record["text"])
        if len(text.encode()) < SHORTEST_STORY_BYTES:
            continue
        collection, _, file = record["src"].split("/")
        # Both African collections number one set of stories; the other publisher's numbers are its own.
        family = "pb" if collection.startswith("pb") else "story"
        yield Document(
            key=f"{family}/{file[:4]}",
            kind="story",
            language=record["lang"].split("-")[0],
            title=clean(record["title"]),
            text=text,
            author=record["author"],
            translator=record["translator"],
            licence="CC-BY 4.0" if family == "pb" else record["license"],
            source=record["src"],
        )


def _book_pieces(path: Path, book: Book) -> Iterator[Document]:
    whole = gzip.decompress(path.read_bytes()).decode("utf-8")
    paragraphs = clean(whole[whole.index(book.first_words) :]).split("\n\n")
    if not book.is_verse:
        paragraphs = [paragraph.replace("\n", " ") for paragraph in paragraphs]
    for number, piece in enumerate(_pieces(paragraphs)):
        stem = book.file.split(".")[0]
        yield Document(f"{stem}/{number}", "book", book.language, "", piece, author=book.author, source=book.file)


def _rights_pieces(path: Path) -> Iterator[Document]:
    for record in _records(path):
        language = ISO_639_1.get(record["lang"], record["lang"].split("_")[0])
        # The article's number decides, so that an article is held out in all languages at once.
        articles = _pieces(clean(record["text"]).split("\n"), limit_bytes=BOOK_PIECE_BYTES // 4)
        for number, piece in enumerate(articles):
            yield Document(f"rights/{number}", "rights", language, "", piece, source=RIGHTS_FILE)


def _pieces(paragraphs: list[str], limit_bytes: int = BOOK_PIECE_BYTES) -> Iterator[str]:
    separator, held, size = "\n\n" if limit_bytes == BOOK_PIECE_BYTES else "\n", list[str](), 0
    for paragraph in paragraphs:
        held.append(paragraph)
        size += len(paragraph.encode())
        if size >= limit_bytes:
            yield separator.join(held)
            held, size = [], 0
    if held:
        yield separator.join(held)
