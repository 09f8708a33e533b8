"""Which models can be evaluated."""

from pathlib import Path

import pytest

from pipeline.detector.model_folder import CONFIG
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.settings import Evaluation
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pair",
            r"no model 'pair' \(did you mean 'pair\.\w+'\?\); "
            r"there are: teacher, first, pair\.big, pair\.small; `lad student pair`",
        ),
        ("pair.bag", r"no model 'pair\.bag' \(did you mean 'pair\.big'\?\).*`lad colearn pair`"),
        ("techer", r"no model 'techer' \(did you mean 'teacher'\?\)"),
        # These names are known: what is wrong comes later.
        ("first", "the data set is not checked yet; run `lad data`"),
        ("pair.small", "the data set is not checked yet; run `lad data`"),
        ("teacher", "the data set is not checked yet; run `lad data`"),
    ],
)
def test_an_unknown_model_is_refused_with_those_that_there_are(
    tmp_path: Path, name: str, message: str
) -> None:
    paths = Paths(tmp_path)
    for model in ("pair.small", "first", "pair.big"):
        paths.model(model).mkdir(parents=True)
        (paths.model(model) / CONFIG).touch()
    # What a kill can leave is no model.
    paths.model("half.partial").mkdir()
    paths.model("gone.removed").mkdir()
    (paths.model("gone.removed") / CONFIG).touch()
    with pytest.raises(UserError, match=message):
        evaluate(name, Evaluation(scale=(256, 192)), paths)
