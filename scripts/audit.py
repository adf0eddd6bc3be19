"""The command `twostage audit`; see --help."""

from pipeline.cli import audit

if __name__ == "__main__":
    audit()
