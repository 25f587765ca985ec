"""
Real multilingual text: the manual pages and the Debian reference that Debian packages have in several languages.

`gather` fetches the packages by name, turns every page into plain words, and writes `documents.jsonl`. The words keep
what the page's markup said of them (literal, argument, heading) as tags; the text itself has no markup left.
"""

import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from gzip import decompress
from html.parser import HTMLParser

from tqdm import tqdm


LANGUAGES = ("en", "de", "fr", "es", "pl", "ru", "uk", "ja", "zh")
PACKAGES = (
    *("manpages", "manpages-dev"),
    *(f"manpages-{language}" for language in LANGUAGES[1:]),
    *(f"manpages-{language}-dev" for language in LANGUAGES[1:-1]),
    *(f"debian-reference-{language}" for language in ("en", "de", "fr", "es", "ja", "zh-cn")),
)
PLAIN, LITERAL, ARGUMENT, HEADING = "OLAH"  # the tags of words
MIN_CHARACTERS = 500  # of a document; shorter ones only point to another page
TEST_PERCENT = 20  # of the documents
MAN_PAGE = re.compile(r"\./usr/share/man/(?:(?P<language>\w+)/)?man\d/(?P<name>.+)\.(?P<section>\d)\w*\.gz")
REFERENCE = re.compile(r"\./usr/share/debian-reference/(?P<name>ch\d+)\.(?P<language>[\w-]+)\.html")
RULE = re.compile(r"[\W_]{4,}")  # a line of a table, not a word
STRUCK = re.compile(r".\x08+")  # what grotty prints first of a character that it strikes twice
GROFF = "groff -K utf8 -t -mandoc -Tutf8 -P-c -rLL=1000n -rHY=0".split()


class MissingTool(Exception):
    """A program or a package that is not there; the message says how to get it."""


@dataclass(frozen=True)
class Document:
    """One page in one language. `tags` has one character for each of the words of `text`."""

    name: str  # the same for all translations, such as "signal.7"
    language: str
    section: str  # of the manual, "1" to "8"; "0" for a chapter of the Debian reference
    text: str
    tags: str

    @property
    def is_test(self):
        """Whether it is held out; so are its translations."""
        return zlib.crc32(self.name.encode()) % 100 < TEST_PERCENT


def load(folder):
    """The documents of `folder`, `gather`ed before."""
    with open(folder / "documents.jsonl", encoding="utf-8") as lines:
        return [Document(**json.loads(line)) for line in lines]


def gather(folder):
    """Writes `folder/documents.jsonl` unless it is there. What was fetched before is not fetched again."""
    path = folder / "documents.jsonl"
    if path.exists():
        return
    for tool, package in (("dpkg-deb", "dpkg"), ("groff", "groff-base")):
        if not shutil.which(tool):
            raise MissingTool(f"{tool} is missing, which reads the pages: apt-get install {package}")
    (folder / "packages").mkdir(parents=True, exist_ok=True)
    pages = []
    for package in tqdm(PACKAGES, desc="packages"):
        pages += read_pages(fetch(package, folder / "packages"))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        documents = list(tqdm(threads.map(to_document, pages), total=len(pages), desc="pages"))
    seen = {}
    for document in documents:
        if len(document.text) >= MIN_CHARACTERS:
            seen.setdefault(document.text, document)
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for document in sorted(seen.values(), key=lambda document: (document.name, document.language)):
            file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
    partial.replace(path)


def fetch(package, folder):
    """Path of the newest `.deb` of `package` that the package sources of this machine have, or that `folder` has."""
    there = sorted(folder.glob(f"{package}_*.deb"))
    if there:
        return there[-1]
    if not shutil.which("apt-get"):
        raise MissingTool(f"apt-get is missing, which fetches {package}: put {package}_*.deb into {folder} by hand")
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    there = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode or not there:
        raise MissingTool(
            f"{package} could not be fetched ({done.stderr.strip()}): run apt-get update, look at the network, or put "
            f"{package}_*.deb into {folder} by hand; the packages fetched before are kept"
        )
    return there[-1]


def read_pages(path):
    """`[(name, language, section, source)]` of the `.deb` at `path`; `source` is roff or, of a chapter, HTML."""
    pages = []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if match := MAN_PAGE.fullmatch(member.name):
                    source, section = decompress(archive.extractfile(member).read()), match["section"]
                    name = f"{match['name']}.{section}"
                elif match := REFERENCE.fullmatch(member.name):
                    source, section = archive.extractfile(member).read(), "0"
                    name = f"debian-reference.{match['name']}"
                else:
                    continue
                language = {"zh_CN": "zh", "zh-cn": "zh", None: "en"}.get(match["language"], match["language"])
                if language in LANGUAGES and not source.startswith(b".so "):
                    pages.append((name, language, section, source))
    if process.returncode:
        raise MissingTool(f"{path} is no whole package: delete it and start again")
    return pages


def to_document(page):
    """The `Document` of one of `read_pages`."""
    name, language, section, source = page
    words, tags = read_html(source) if section == "0" else read_roff(source)
    return Document(name, language, section, " ".join(words), "".join(tags))


def read_roff(source):
    """`(words, tags)` of a manual page, without the title and the footer of the printed page."""
    done = subprocess.run(GROFF, input=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    words, tags = [], []
    for line in lines[1:-1]:
        struck = line.split()
        is_heading = len(line) - len(line.lstrip()) < 5 and all("\x08" in word for word in struck)
        for word in struck:
            plain = STRUCK.sub("", word).strip("\x08")
            if not plain or RULE.fullmatch(plain):
                continue
            words.append(plain)
            kind = PLAIN if "\x08" not in word else ARGUMENT if "_\x08" in word else LITERAL
            tags.append(HEADING if is_heading else kind)
    return words, tags


def read_html(source):
    """`(words, tags)` of a chapter of the Debian reference."""
    parser = _Chapter()
    parser.feed(source.decode(errors="replace"))
    return parser.words, parser.tags


class _Chapter(HTMLParser):
    KINDS = {
        **dict.fromkeys(("code", "strong", "pre"), LITERAL),
        **dict.fromkeys(("em", "i"), ARGUMENT),
        **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), HEADING),
    }

    def __init__(self):
        super().__init__()
        self.words, self.tags, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag in self.KINDS or tag in ("title", "style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            del self.open[self.open.index(tag) :]

    def handle_data(self, data):
        if not {"title", "style", "script"} & set(self.open):
            kind = max((self.KINDS[tag] for tag in self.open), key="OALH".index, default=PLAIN)
            self.words += data.split()
            self.tags += kind * len(data.split())
