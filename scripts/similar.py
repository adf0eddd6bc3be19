"""The command `twostage similar`; see --help."""

from pipeline.cli import similar

if __name__ == "__main__":
    similar()
