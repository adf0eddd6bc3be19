"""The command `twostage report`; see --help."""

from pipeline.cli import report

if __name__ == "__main__":
    report()
