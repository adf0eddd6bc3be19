"""The command `twostage predict`; see --help."""

from pipeline.cli import predict

if __name__ == "__main__":
    predict()
