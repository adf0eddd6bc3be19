"""The report page as HTML: the template, its script and style, and how names are shown."""

import base64
import hashlib
from pathlib import Path

from pipeline.insight.page import Page
from pipeline.insight.page_text import short, show
from pipeline.wording import count_of

_TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> bytes:
    """Return the page as HTML in UTF-8, with its script, style and images inside."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"show": show, "short": short, "count_of": count_of}
    script, style = ((_TEMPLATES / f"report.{ending}").read_text("utf-8") for ending in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("report.html")
    return template.render(page=page, script=script, digest=digest, style=style).encode("utf-8", "backslashreplace")
