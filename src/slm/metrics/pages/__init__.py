"""Pages that a run leaves behind or that look into a model: HTML of its own, with nothing from elsewhere."""

from slm.metrics.pages.card import model_card
from slm.metrics.pages.report import report_page
from slm.metrics.recorded import Recorded


def pages_of(run: Recorded) -> dict[str, str]:
    """The text of report.html and MODEL_CARD.md, by name."""
    return {"report.html": report_page(run), "MODEL_CARD.md": model_card(run)}
