"""The command `twostage extract`; see --help."""

from pipeline.cli import extract

if __name__ == "__main__":
    extract()
