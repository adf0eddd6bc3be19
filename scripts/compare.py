"""The command `twostage compare`; see --help."""

from pipeline.cli import compare

if __name__ == "__main__":
    compare()
