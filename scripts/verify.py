"""The command `twostage verify`; see --help."""

from pipeline.cli import verify

if __name__ == "__main__":
    verify()
