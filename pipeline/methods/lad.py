"""Label Assignment Distillation: the teacher decides which prior learns which object.

LAD (WACV 2022, section 3.2). The losses are mmdet's `LADHead`'s.
"""

from pipeline.students.method import Method

METHOD = Method(assignment=True)
