"""Verdicts as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.zoo.stages import STAGES, Verdict

HEAD = """# The zoo

Each network, with random weights, goes through every stage: it is prepared for training and trained for one step,
whose gradients must be finite; prepared for calibration and calibrated on two batches; converted, which must change no
number of the simulated network; exported as a QDQ file, and compared with ONNX Runtime, unfused and fused, tensor by
tensor. Detectors are quantized in parts, each a file of its own; their post-processing stays Python. `make zoo` writes
this page.

"of parameters" is the part of them that lies in layers with integer weights, embeddings aside; "worst tensor" the
greatest part of any tensor's integers that the runtime, given the same integers before, computes otherwise, by one step
unless it is said.
"""


def markdown(verdicts: Sequence[Verdict]) -> str:
    """A page: a summary a family, what failed and why, then a row a network."""
    parts = [HEAD, *_summary(verdicts), "", *_failures(verdicts), "", *_networks(verdicts), ""]
    return "\n".join(parts)


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
