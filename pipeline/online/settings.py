"""The section `online`: students with their teacher in memory."""

from pipeline.students.settings import ALONE, Student


class OnlineStudent(Student):
    """A student whose teacher labels its batch in each step."""

    @property
    def labels_from(self) -> str:
        """Where its labels come from."""
        return "online"

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            ValueError: they do not.
        """
        if self.method == ALONE:
            raise ValueError(
                f"an online student learns from a teacher, and {ALONE} from none; "
                "it belongs into the section `students`"
            )
        if self.assigner == "mmdet" and self.method != "lad":
            raise ValueError("assigner: mmdet is for the method lad; leave it out")
