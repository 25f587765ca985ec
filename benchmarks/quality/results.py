"""What has been measured, in one JSON file that is whole at any time: as `lsg-evaluate` keeps it."""

from lsg_xlmr.evaluation.results import Results


__all__ = ["Results"]
