"""The command `twostage finetune`; see --help."""

from pipeline.cli import finetune

if __name__ == "__main__":
    finetune()
