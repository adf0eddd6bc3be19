"""The command `twostage runs`; see --help."""

from pipeline.cli import runs

if __name__ == "__main__":
    runs()
