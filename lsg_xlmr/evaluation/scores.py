# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""What was measured as one number for each way, and how sure it is."""

from dataclasses import dataclass, field

import torch


FEW = 20  # documents below which an interval says little
RESAMPLES = 2000
SEED = 0
CONVERTED = "LSG"  # how the names of converted ways begin


@dataclass
class Row:
    """One way's values: `{unit: (numerator, denominator)}`; the number is the ratio of the sums."""

    way: str  # which reading they are of
    is_converted: bool
    values: dict  # the id of a question is its document's, a blank and a number
    vectors: float = 1.0  # a document


@dataclass
class Score:
    """One question, and the answer of each way."""

    title: str
    unit: str = "documents"
    lower_is_better: bool = False
    percent: bool = False
    digits: int = 1
    decides: bool = True  # whether converting or not hangs on it
    is_agreement: bool = False  # with sliding windows, instead of what is known to be right
    rows: dict = field(default_factory=dict)

    def add(self, name, row):
        if row.values:
            self.rows[name] = row

    def fill(self, measured, ratio):
        """Adds a row for each way of `measured`, `{way: {id: record}}`, by `ratio(record)`, as in `Row`."""
        for way, records in measured.items():
            values = {unit: ratio(record) for unit, record in records.items()}
            self.add(way, Row(way, way.startswith(CONVERTED), values))
        return self

    @property
    def units(self):
        """What every way has been measured on, in order."""
        rows = list(self.rows.values())
        return [unit for unit in rows[0].values if all(unit in row.values for row in rows)] if rows else []

    @property
    def documents(self):
        """Of which document each of `units` is, as a number; those of one document are no independent evidence."""
        names = [unit.rpartition(" ")[0] if self.unit == "questions" else unit for unit in self.units]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return [numbers[name] for name in names]

    @property
    def is_small(self):
        """Whether there are too few documents to say anything of others."""
        return len(set(self.documents)) < FEW

    def value(self, name):
        return float(ratio(self._sums(name).sum(0)))

    def interval(self, name, other=None):
        """
        The 95 % interval of a row's value or, with `other`, of how much higher it is than that one's, by the
        bootstrap over documents (`[low, high]`); None of one document, which says nothing of others.
        """
        sums = self._sums(name)
        if len(sums) == 1:
            return None
        chosen = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(SEED))
        values = ratio(sums[chosen].sum(1))
        if other is not None:
            values = values - ratio(self._sums(other)[chosen].sum(1))
        return torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()

    def told(self, value, signed=False):
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.{self.digits}f} %" if self.percent else f"{value:{sign}.{self.digits}f}"

    def told_interval(self, name, other=None):
        """Such as "1.0 to 2.0" (`str`); empty where there is none."""
        interval = self.interval(name, other)
        return " to ".join(self.told(end, signed=other is not None) for end in interval) if interval else ""

    def best(self, is_converted):
        """
        The name of the best row, converted or not; None if there is none. It is the first, unless another is better
        by more than chance: the best of many is mostly lucky.
        """
        names = [name for name, row in self.rows.items() if row.is_converted == is_converted]
        if not names or not self.units:
            return None
        sign = -1 if self.lower_is_better else 1
        names = names[:1] + [name for name in names[1:] if self.is_better(name, names[0])]
        return max(names, key=lambda name: sign * self.value(name))

    def is_better(self, name, other):
        """Whether the whole interval of the difference says so; of few documents none does."""
        if self.is_small:
            return False
        low, high = self.interval(name, other)
        return high < 0 if self.lower_is_better else low > 0

    def _sums(self, name):
        """`(documents, 2)`"""
        of = torch.tensor(self.documents)
        values = torch.tensor([self.rows[name].values[unit] for unit in self.units], dtype=torch.float64)
        return torch.zeros(int(of.max()) + 1, 2, dtype=torch.float64).index_add_(0, of, values)


def beside(measured, reference):
    """All ways but `reference`, with the records that it has too."""
    known = measured.get(reference, {})
    return {
        way: {unit: record for unit, record in records.items() if unit in known}
        for way, records in measured.items()
        if way != reference
    }


def ratio(sums):
    """Of numerators and denominators, `(..., 2)`; 0 where there is nothing."""
    return torch.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1].clamp(min=1e-12), 0.0)
