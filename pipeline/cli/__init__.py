"""The commands: a skin over the library. Heavy imports wait until a command runs."""

from pipeline.cli.command import main, progress_bar
from pipeline.cli.inspection import audit, compare, export_vectors, report, runs, similar, verify
from pipeline.cli.workflow import extract, finetune, predict, train_head

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
