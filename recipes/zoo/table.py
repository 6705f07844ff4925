"""Verdicts as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.zoo.stages import STAGES, Verdict


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A summary a family, then a table with a row a network."""
    return "\n".join([*_summary(verdicts), "", *_networks(verdicts), "", *_failures(verdicts)])


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| family | networks | pass | clear error | other |", "| --- | --- | --- | --- | --- |"]
    for family in dict.fromkeys(verdict.family for verdict in verdicts):
        members = [verdict for verdict in verdicts if verdict.family == family]
        passed = sum(verdict.passed for verdict in members)
        clear = sum(verdict.is_clear and not verdict.passed for verdict in members)
        lines.append(f"| {family} | {len(members)} | {passed} | {clear} | {len(members) - passed - clear} |")
    return lines


def _networks(verdicts: Sequence[Verdict]) -> list[str]:
    head = [
        "network",
        "verdict",
        "layers",
        "of parameters",
        "worst tensor",
        *(f"{stage} s" for stage in STAGES),
        "note",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for verdict in verdicts:
        cells = [verdict.name, "pass" if verdict.passed else f"stops at {verdict.failed}", str(verdict.layers)]
        cells += [f"{100 * verdict.covered:.1f} %", f"{100 * verdict.unequal:.3f} %"]
        cells += [f"{verdict.seconds[stage]:.1f}" if stage in verdict.seconds else "" for stage in STAGES]
        lines.append(f"| {' | '.join([*cells, verdict.note])} |")
    return lines


def _failures(verdicts: Sequence[Verdict]) -> list[str]:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return [f"- **{verdict.name}**, {verdict.failed}: {verdict.error.splitlines()[0]}" for verdict in failed]
