"""The command `twostage train-head`; see --help."""

from pipeline.cli import train_head

if __name__ == "__main__":
    train_head()
