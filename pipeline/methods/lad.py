"""Label Assignment Distillation: the teacher decides which prior learns which object.

LAD (WACV 2022, section 3.2). The losses are the head's own; those of a PAA are mmdet's `LADHead`'s.
"""

from pipeline.students.method import Method

METHOD = Method(assignment="teacher")
