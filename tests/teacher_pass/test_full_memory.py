"""A full memory, of a GPU or between processes, ends with one message; finished work stays."""

import shutil

import pytest
import torch

from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.store.schema import unfinished
from pipeline.teacher_pass.teacher import Teacher

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


def test_a_full_gpu_ends_a_pass_which_can_begin_with_smaller_batches(project, monkeypatch) -> None:
    shutil.rmtree(project.paths.labels)
    forward = Teacher.forward

    def small_gpu(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError(SAID)
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", small_gpu)
    with pytest.raises(
        UserError, match=r"full \(CUDA.*2.00 GiB\); remove .*zarr.partial, .* lower"
    ):
        project.fill_store()
    # What the message says to do.
    shutil.rmtree(unfinished(project.paths.labels))
    project.change(teacher_pass={"batch_size": 2}).fill_store()
    LabelStore(project.paths.labels).require_complete()


def test_a_full_gpu_ends_a_training(project, monkeypatch) -> None:
    def too_large(*_, **__):
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr("pipeline.students.taught.TaughtDetector.loss", too_large)
    with pytest.raises(UserError, match="memory is full .*; lower training.batch_size"):
        project.train("lad")


@pytest.mark.parametrize("stage", ["labels", "lad", "solad"])
def test_too_little_shared_memory_is_one_message(project, monkeypatch, stage: str) -> None:
    """As in a container without `--shm-size`, what torch's loader would wait for forever."""

    def no_space(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
        )

    project.change(teacher_pass={"workers": 1}, training={"workers": 1})
    settings = project.params.students["lad"]
    project.change(students={"solad": {"config": settings.config, "method": "solad"}})
    if stage == "labels":
        shutil.rmtree(project.paths.labels)
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_space)
    with pytest.raises(UserError, match=r"too little shared memory \(/dev/shm\)"):
        project.fill_store() if stage == "labels" else project.train(stage)
