"""The head as mmdet trains it: its own assigner decides, and it learns nothing of a teacher."""

from pipeline.students.method import Method

METHOD = Method(assignment="own")
