# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What the libraries say, cut to what a user needs of it."""

from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers():
    """transformers logs nothing but errors: what matters of its reports is said in our own words."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error):
    """The first line of an exception's message, or its name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_sentence(error):
    """The first sentence of an exception's message: torch goes on with advice to load unsafely."""
    told = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    is_bare = isinstance(error, (AttributeError, EOFError, LookupError, TypeError))  # says little without its name
    return f"{type(error).__name__}: {told}" if is_bare or not told else told


def shortened(names):
    """Three of the `names` (a list), and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
