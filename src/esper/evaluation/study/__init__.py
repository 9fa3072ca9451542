"""A study: all arms on all tasks, and what they say about the claims.

Example::

    study = Study(StudyConfig(task=("wine",), seeds=2), Path("runs/wine"))
    study.run(workers=2, on_done=print)
    found, written = write_report(study)
"""

from esper.evaluation.study.arms import Arm, Bench, study_arms
from esper.evaluation.study.report import write_report
from esper.evaluation.study.study import Study, StudyConfig, Unit, add_seeds, open_study
from esper.evaluation.study.verdicts import Check, Claim, claims

__all__ = [
    "Arm",
    "Bench",
    "Check",
    "Claim",
    "Study",
    "StudyConfig",
    "Unit",
    "add_seeds",
    "claims",
    "open_study",
    "study_arms",
    "write_report",
]
