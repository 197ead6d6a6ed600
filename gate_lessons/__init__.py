"""GATE Lessons: how text embeddings learn, for Arabic sentences, in code that can be read in a lesson.

Import the module you need (`from gate_lessons import losses, miner`); the package itself imports nothing heavy.
"""

__version__ = "0.1.0"
