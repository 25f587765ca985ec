# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What has been measured, in files that are whole at any time."""

import json
import os


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


class Lines:
    """
    Records (`dict`) by their `id` in a JSONL file to which they are added one by one. A line that a kill or a full
    disk has left unfinished is cut off when the file is read.

    Args:
        path (`Path`): the file; there or not.

    Raises:
        ValueError: a whole line is no record.
    """

    def __init__(self, path):
        self.path, self.records = path, {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        try:
            for line in whole.splitlines():
                record = json.loads(line)
                self.records[record["id"]] = record
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged: delete it, and what it held is measured again.") from error

    def add(self, record):
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)
