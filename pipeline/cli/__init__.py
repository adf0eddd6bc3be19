"""The commands: a skin over the library. Heavy imports wait until a command runs."""

from pipeline.cli.looking import audit, compare, export_vectors, report, runs, similar, verify
from pipeline.cli.main_job import extract, finetune, predict, train_head
from pipeline.cli.shell import main, progress_bar

__all__ = [
    "audit",
    "compare",
    "export_vectors",
    "extract",
    "finetune",
    "main",
    "predict",
    "progress_bar",
    "report",
    "runs",
    "similar",
    "train_head",
    "verify",
]
