"""Write docs/commands.md: the --help text of every command."""

from pathlib import Path

import click

from pipeline import cli

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
INTRO = """# Commands

For users who look up an option: the `--help` of every command, written by `python scripts/commands_page.py`.
"""


def commands_page() -> str:
    """Return the page as Markdown, with help texts 100 columns wide."""
    parts = [INTRO]
    for name, command in sorted(cli.main.commands.items()):
        context = command.make_context(
            f"twostage {name}", [], parent=None, resilient_parsing=True, terminal_width=100, max_content_width=100
        )
        parts.append(f"## twostage {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def write_page() -> None:
    """Write docs/commands.md: the --help text of every command."""
    PAGE.write_text(commands_page(), "utf-8")


if __name__ == "__main__":
    write_page()
