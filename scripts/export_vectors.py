"""The command `twostage export-vectors`; see --help."""

from pipeline.cli import export_vectors

if __name__ == "__main__":
    export_vectors()
