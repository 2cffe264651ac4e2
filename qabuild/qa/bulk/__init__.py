"""Bulk answering of question files: one into another (`file`), or any number into a folder, in parts (`dataset`)."""

from qabuild.qa.bulk.dataset import answer_dataset
from qabuild.qa.bulk.file import answer_file
from qabuild.qa.bulk.tally import Summary

__all__ = ["Summary", "answer_dataset", "answer_file"]
