"""PAA alone: the student's own rule assigns, and it learns nothing of a teacher."""

from pipeline.students.method import Method

METHOD = Method()
