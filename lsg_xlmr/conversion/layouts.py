# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Which kind of folder a source is: where its encoder lies, and what sentence-transformers has beside it."""

import json
import re
from pathlib import Path

from .files import read_json


MODULE_FOLDER = re.compile(r"[0-9]+_\w+")
ROUTERS = ("Router", "Asym")  # of sentence-transformers, by the age of their names


def read_modules(root):
    """
    Returns:
        `list[dict]`: the modules of the sentence-transformers model in the folder `root`, the encoder first; none if
        it is no such model.

    Raises:
        ValueError: `modules.json` is no list of modules, names something else, or begins with a router.
    """
    if not (root / "modules.json").is_file():
        return []
    modules = read_json(root / "modules.json", list)
    try:
        paths = [module["path"] for module in modules]
    except (TypeError, KeyError) as error:
        raise ValueError(f"modules.json is no list of modules, each with a path: {error!r}.") from error
    for path in (path for path in paths if path != ""):
        # What it names is copied: it may be no other folder of this machine, nor the source itself.
        is_named_well = isinstance(path, str) and MODULE_FOLDER.fullmatch(path)
        if not is_named_well or (root / path).is_symlink() or (root / path).is_file():
            raise ValueError(
                f"modules.json names {path!r}, which is not a module's folder like 1_Pooling, or is a link: refused."
            )
    if modules and _kind(modules[0]) in ROUTERS:
        raise ValueError(_told_of_router(root, root / paths[0]))
    return modules


def takes_own_classes(modules):
    """Whether all `modules` are of sentence-transformers itself, and not of code beside them."""
    own = "sentence_transformers."
    return all(str(module.get("type", own)).startswith(own) for module in modules)


def flat(modules):
    """The `modules` with the encoder in the folder itself, as sentence-transformers writes them today."""
    first = {**modules[0], "path": ""}
    if modules[0]["path"] and "Transformer" not in _kind(first):  # once there was a class for each model
        first["type"] = "sentence_transformers.models.Transformer"
    return [first, *modules[1:]]


def told_of_whole(folder):
    """What is to be said of a `folder` that is the encoder of a sentence-transformers model; `None` if it is not."""
    folder = Path(folder).resolve()
    for name in ("modules.json", "router_config.json"):
        try:
            content = json.loads((folder.parent / name).read_text(encoding="utf-8"))
            paths = [module["path"] for module in content] if name == "modules.json" else list(content["types"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
        if folder.name in paths:
            others = ", ".join(str(path) for path in paths if path not in ("", folder.name))
            return (
                f"{folder.name} is the encoder of the sentence-transformers model in {folder.parent}, and is "
                f"converted alone: what is beside it is left there ({others or 'its settings'})."
            )
    return None


def told_of_parts(name, root):
    """One line for the folder `root`, called `name`, that has no config.json."""
    parts = sorted(path.parent.name for path in root.glob("*/config.json") if _has_model_type(path))
    if not parts:
        return f"{name!r} is not a checkpoint: it has no config.json."
    some = ", ".join(repr(str(Path(name, part))) for part in parts[:3])
    more = f" and {len(parts) - 3} more" if parts[3:] else ""
    return f"{name!r} is not a checkpoint: it has no config.json of a model, but {some}{more}: convert that."


def _told_of_router(root, folder):
    for name in ("router_config.json", "config.json"):
        if (folder / name).is_file():
            break
    content = read_json(folder / name, dict)
    types = content.get("types") if isinstance(content.get("types"), dict) else {}
    parts = [str(folder / part) for part in types if _has_model_type(folder / part / "config.json")]
    told = f"{str(root)!r} is a Router of sentence-transformers, whose encoders lie in parts of it"
    if not parts:
        return f"{told}, and none of them is found: name the folder of one."
    return (
        f"{told}: convert each of {', '.join(map(repr, parts))} by itself, put the result in its place, and its two "
        "Python files beside modules.json."
    )


def _kind(module):
    return str(module.get("type")).rsplit(".", 1)[-1]


def _has_model_type(path):
    try:
        return "model_type" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
