"""What has been measured, in one JSON file that is whole at any time."""

import json


class Results(dict):
    """
    The content of the JSON file at `path`, as `{part: {...}}`; a part that is not there yet is an empty dictionary.
    `save` writes it to a file beside and puts that in its place, so that a full disk or a kill leaves the old one.
    """

    def __init__(self, path):
        super().__init__(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        self.path = path

    def __missing__(self, part):
        return self.setdefault(part, {})

    def save(self):
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path)
