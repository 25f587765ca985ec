# Copyright 2026 The lsg-xlmr authors. Licensed under the Apache License, Version 2.0.
"""Whether to convert, in plain words."""

from dataclasses import dataclass

from .documents import counted
from .scores import FEW


FASTER = 0.9  # of the time: what is less counts


@dataclass
class Verdict:
    decision: str  # such as "convert", "keep the source", "no difference beyond noise", "too few to say"
    line: str


def verdict(score, seconds):
    """
    Args:
        score ([`Score`]).
        seconds (`dict[str, float]`): of a document, by way.

    Returns:
        `Verdict`, or None where there is nothing to compare.
    """
    source, converted = score.best(is_converted=False), score.best(is_converted=True)
    if source is None or converted is None:
        return None
    interval = score.told_interval(converted, source)
    difference = score.value(converted) - score.value(source)
    values = [f"{name}: {score.told(score.value(name))}" for name in (converted, source)]
    compared = (
        f"{score.title}: {'; '.join(values)}; difference {score.told(difference, True)} "
        f"({f'{interval}, 95 %, ' * bool(interval)}{counted(len(score.units), score.unit)})"
    )
    times = seconds[score.rows[converted].way], seconds[score.rows[source].way]
    cost = f"LSG takes {times[0]:.3g} s, the source {times[1]:.3g} s"
    if score.is_small:
        decision, why = "too few to say", f"fewer than {FEW} documents show little"
    elif score.is_better(converted, source):
        decision, why = "convert", "better by more than noise"
    elif score.is_better(source, converted) and score.is_agreement:
        decision, why = "not known without labels", "the source is nearer to its own windows, right or wrong"
    elif score.is_better(source, converted):
        decision, why = "keep the source", "worse by more than noise"
    else:
        is_quicker = times[0] < FASTER * times[1]
        decision = "no difference beyond noise" + ", and converted is quicker" * is_quicker
        why = "convert for the time" if is_quicker else "nothing speaks for converting"
    return Verdict(decision, f"{compared}: {why}; {cost}.")


def best_setting(score):
    """Which converted row does best (`str`); None where there is no choice, or too little to choose by."""
    names = [name for name, row in score.rows.items() if row.is_converted]
    best = score.best(is_converted=True)
    if len(names) < 2 or score.is_small:
        return None
    others = ", ".join(f"{name} ({score.told(score.value(name))})" for name in names if name != best)
    than = f"better than {names[0]} by more than noise" if best != names[0] else "none is better by more than noise"
    return f"Settings, {score.title}: {best} ({score.told(score.value(best))}), {than}; the others: {others}."


def in_short(verdicts):
    """One line (`str`) of all `verdicts`, `{title: Verdict}`."""
    decisions = {verdict.decision for verdict in verdicts.values()}
    if not decisions:
        return "In short: not enough was measured to say whether to convert."
    if len(decisions) == 1:
        return f"In short: {decisions.pop()}."
    return f"In short: {'; '.join(f'{x.decision} ({title})' for title, x in verdicts.items())}."
