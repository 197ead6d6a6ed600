"""Hard-negative mining for a user's own files: pairs and a corpus in; triplets, and a report of what was mined, out.

Sentences are embedded into shards on disk, then mined a slice of anchors at a time; both lie in a work folder beside
the output, so that the same job goes on where it was interrupted, and ends with the same bytes.
"""

from gate_lessons.mine_files.inputs import Inputs, read_inputs
from gate_lessons.mine_files.job import Mining, mine_files
from gate_lessons.mine_files.work import WorkFolder

__all__ = ["Inputs", "Mining", "WorkFolder", "mine_files", "read_inputs"]
