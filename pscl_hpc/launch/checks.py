"""What must be true before a job is submitted: its input is valid, and nothing else works on its run folder."""

from __future__ import annotations

from pathlib import Path

from pscl_hpc.archive import Archive
from pscl_hpc.config import RunConfig
from pscl_hpc.errors import UserError
from pscl_hpc.launch.profiles import Profile
from pscl_hpc.launch.records import JOBS, latest_job
from pscl_hpc.launch.schedulers import known_phase
from pscl_hpc.pretraining.config import PretrainConfig
from pscl_hpc.pretraining.data import PretrainData
from pscl_hpc.pretraining.task import first_trunk
from pscl_hpc.runs import RunFolder
from pscl_hpc.runs.lock import lock_holder
from pscl_hpc.segmentation.classifier_config import ClassifierConfig
from pscl_hpc.segmentation.classify import check_classifier
from pscl_hpc.segmentation.config import FinetuneConfig
from pscl_hpc.segmentation.data import rank_slots, select_data, select_unlabelled
from pscl_hpc.segmentation.finetune import build_net


def check_input(config: RunConfig, profile: Profile) -> None:
    """The stage's own checks, made before the job waits in the queue; UserError if the run could not start."""
    if not Path(config.data.archive).exists():
        raise UserError(f"{config.data.archive}: archive not found; check data.archive, or build it first")
    check_percent(Path(config.run))
    ranks = profile.nodes * profile.tasks
    with Archive(config.data.archive) as archive:
        if isinstance(config, PretrainConfig):
            PretrainData(archive, config, rank=0, ranks=ranks)
            if config.pretrained:
                first_trunk(config)
            return
        if isinstance(config, ClassifierConfig):
            if ranks > 1:
                raise UserError(
                    f"a classifier is trained by one process, not {ranks}; ask for one node and one rank"
                )
            check_classifier(config, archive)
            return
        assert isinstance(config, FinetuneConfig)
        data = select_data(config, archive)
        rank_slots(config.batch_size, "batch_size", 0, ranks)
        if config.semi_supervised is not None:
            select_unlabelled(config, config.semi_supervised, archive, data.collection.name)
            rank_slots(config.semi_supervised.batch_size, "semi_supervised.batch_size", 0, ranks)
        if config.pretrained:
            build_net(config, data.classes.count)


def check_percent(folder: Path) -> None:
    """UserError if a path has a character that Slurm replaces in names of logs."""
    if "%" in str(folder.absolute()):
        raise UserError(f"{folder}: the folder of a job must not contain '%'; choose another with run=...")


def check_free(folder: RunFolder, entry: str) -> None:
    """UserError if something works on the run, or if it is done and the job does no more than the run."""
    if folder.done and not entry:
        raise UserError(f"{folder.path}: this run is done; choose another folder with run=...")
    job = latest_job(folder.path)
    phase = known_phase(job) if job is not None else "ended"
    if job is not None and phase in ("pending", "running"):
        raise UserError(
            f"{folder.path}: job {job.job} is working on it; cancel it with 'pscl-hpc jobs cancel' first"
        )
    if job is not None and phase == "unknown":
        whose = f"a process of {job.host}" if job.cluster == "local" else "of a Slurm that is not here"
        raise UserError(
            f"{folder.path}: job {job.job} is {whose}; cancel it there, or delete "
            f"{folder.path / JOBS / job.job}.json if that machine is gone"
        )
    if holder := lock_holder(folder.path):
        raise UserError(f"{folder.path}: {holder} is working on it; stop it first, or wait for its end")
