"""
A second corpus, of guides and help for users: the help of LibreOffice, and books on installing, running and packaging
for Debian, which Debian packages have in a dozen languages, paragraph by paragraph alike.
"""

import re
import subprocess
import tarfile
from html.parser import HTMLParser

from corpus import MissingTool, fetch


LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "cs", "pl", "ru", "ja", "ko", "zh")
PACKAGES = (
    *(f"libreoffice-help-{ {'en': 'en-us', 'zh': 'zh-cn'}.get(language, language) }" for language in LANGUAGES),
    *("debian-handbook", "installation-guide-amd64"),
    *("developers-reference", *(f"developers-reference-{language}" for language in ("de", "fr", "it", "ja", "ru"))),
    *(f"aptitude-doc-{language}" for language in ("en", "cs", "es", "fr", "it", "ja", "ru")),
    *("maint-guide", *(f"maint-guide-{language}" for language in ("de", "es", "fr", "it", "ja", "ru", "zh-cn"))),
)
HELP = re.compile(r"\./usr/share/libreoffice/help/(?P<language>[\w-]+)/text/(?P<name>.+)\.html")
HANDBOOK = re.compile(r"\./usr/share/doc/debian-(?P<book>handbook)/html/(?P<language>[\w-]+)/(?P<name>[^/]+)\.html")
GUIDE = re.compile(
    r"\./usr/share/(doc/)?(?P<book>installation-guide|developers-reference|aptitude|maint-guide)[\w-]*/(html/)?"
    r"((?P<language>\w\w(_\w\w)?)/)?(?P<name>[\w-]+)(\.(?P<suffix>[\w-]+))?\.html"
)
WHOLE = ("developers-reference", "index", "search")  # all of a book on one page, and pages that are no text
# What holds a paragraph in each: a tag with an attribute, that has a value where one is named.
PARAGRAPHS = {HELP: ("p", "id", None), HANDBOOK: ("div", "class", "para"), GUIDE: ("p", None, None)}


def read(folder):
    """
    `[(name, language, paragraphs)]` of all pages whose paragraphs are as many in that language as in English, the
    packages fetched to `folder` before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for package in PACKAGES:
        for name, language, paragraphs in read_package(fetch(package, folder)):
            pages.setdefault((name, language), paragraphs)
    return [
        (name, language, paragraphs)
        for (name, language), paragraphs in sorted(pages.items())
        if len(paragraphs) == len(pages.get((name, "en"), ()))
    ]


def read_package(path):
    """The pages of the `.deb` at `path`, `(name, language, paragraphs)`."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                for form, element in PARAGRAPHS.items():
                    match = member.isfile() and form.fullmatch(member.name)
                    found = match and {"book": "help", "suffix": None} | match.groupdict()
                    if found and found["name"] not in WHOLE:
                        language = re.split("[-_]", found["language"] or found["suffix"] or "en")[0]
                        if language in LANGUAGES and "TW" not in str(found["language"]):
                            html = archive.extractfile(member).read().decode(errors="replace")
                            yield f"{found['book']}/{found['name']}", language, read_paragraphs(html, *element)
    if process.returncode:
        raise MissingTool(f"{path} is no whole package: delete it and start again")


def read_paragraphs(html, tag, attribute, value):
    """Plain text of every element `tag` of `html` that has `attribute` (with `value`); no code, no headings."""
    parser = _Paragraphs(tag, attribute, value)
    parser.feed(html)
    return parser.found


class _Paragraphs(HTMLParser):
    BREAKS = {*"p div ul ol dl li dt dd table tr td th pre blockquote body h1 h2 h3 h4 h5 h6".split()}
    LEFT_OUT = {*"pre header aside nav footer script style title h1 h2 h3 h4 h5 h6".split()}
    EMPTY = {*"br hr img input link meta col".split()}  # which no end follows

    def __init__(self, tag, attribute, value):
        super().__init__()
        self.element = tag, attribute, value
        self.open, self.text, self.found = [], [], []  # open: (tag, whether its text is of a paragraph)

    def handle_starttag(self, tag, attrs):
        if tag in self.EMPTY:
            return
        attrs, (kept, attribute, value) = dict(attrs), self.element
        keeps = bool(self.open) and self.open[-1][1]
        if tag in self.BREAKS:
            self.flush()
            keeps = tag == kept and (attribute is None or attribute in attrs and value in (None, attrs[attribute]))
        inside = {tag, *(name for name, _ in self.open)}
        left_out = inside & self.LEFT_OUT or attrs.get("class") == "MAC"  # the other system's keys
        self.open.append((tag, keeps and not left_out))

    def handle_endtag(self, tag):
        if tag in self.BREAKS:
            self.flush()
        names = [name for name, _ in self.open]
        if tag in names:
            del self.open[len(names) - 1 - names[::-1].index(tag) :]

    def handle_data(self, data):
        if self.open and self.open[-1][1]:
            self.text.append(data)

    def flush(self):
        words = "".join(self.text).split()
        if words:
            self.found.append(" ".join(words))
        self.text = []
