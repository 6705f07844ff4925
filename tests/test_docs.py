"""What the pages in docs/ list is all that there is."""

from pathlib import Path

import pytest

import edgeq
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.quantizers.registry import QUANTIZERS

DOCS = Path(__file__).parent.parent / "docs"
LISTED = {
    "steps": edgeq.recovery_steps(),
    "quantizers": [name for name in QUANTIZERS if name != "fixed"],
    "strategies": list(NORM_STRATEGIES),
}


@pytest.mark.parametrize("kind", LISTED)
def test_the_page_on_accuracy_names_every_method(kind):
    text = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    assert [name for name in LISTED[kind] if f"`{name}`" not in text] == []
    assert len(LISTED[kind]) > 5
