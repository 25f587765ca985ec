# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""The folder of an evaluation: what was asked, what was measured, and the report."""

from .plots import draw
from .results import Results


MEASURED, RESULTS, PAGE = "measured", "results.json", "report.md"


def open_folder(folder, asked, read):
    """
    Args:
        folder (`Path`): new, empty, or of the same evaluation.
        asked (`dict[str, str]`): all that the measurements depend on, by the names that a user knows.
        read (`list[Path]`): folders that are read, which `folder` may not be in: they would change.

    Returns:
        [`Results`]: those of `folder`, in which nothing is written yet.

    Raises:
        ValueError: the folder is of something else; the message names it.
    """
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file:
        where = "is" if file == folder else f"lies in {file}, which is"
        raise ValueError(f"--output {folder} {where} a file: name a folder.")
    for other in read:
        if folder.resolve().is_relative_to(other.resolve()):
            raise ValueError(f"--output {folder} lies in {other}, which is read: name a folder outside.")
    path = folder / RESULTS
    if folder.exists() and any(folder.iterdir()) and not path.exists():
        raise ValueError(f"--output {folder} holds something else: name a new folder.")
    try:
        results = Results(path)
        before = results["asked"]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no file of an evaluation: name a new folder by --output.") from error
    changed = [
        f"{name} changed" if name.startswith("the content") else f"{name} was {before.get(name)} and is {value}"
        for name, value in asked.items()
        if before.get(name) != value
    ]
    if before and changed:
        raise ValueError(
            f"--output {folder} holds another evaluation: {'; '.join(changed)}. Name a new folder, or ask what was "
            "asked before."
        )
    results["asked"] = asked
    return results


def write_report(report, folder, results):
    """Writes the JSON, the plots and the page; returns what there is to say of it (`str`)."""
    results.update(report.results())
    results.save()
    told = f"{folder / PAGE} and {folder / RESULTS} are written."
    try:
        pictures = draw(report, folder)
    except ImportError:
        pictures, told = (), f"{told} Without plots, for which matplotlib is missing: pip install matplotlib"
    partial = folder / f"{PAGE}.partial"
    partial.write_text(report.page(pictures), encoding="utf-8")
    partial.replace(folder / PAGE)
    return told
