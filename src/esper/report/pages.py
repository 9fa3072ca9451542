"""What kind of run a directory holds, and its page."""

from __future__ import annotations

from pathlib import Path

from esper.evaluation.study import open_study, write_report
from esper.files import read_json
from esper.growth import GrowthResult
from esper.growth.page import growth_section
from esper.page import facts, page, write
from esper.report.training import training_page

GROWTH, TRAINING, COMPARISON = "growth.json", "metrics.jsonl", "results"
"""By what a run of `esper grow`, of `esper train` or `esper ppo`, and of `esper compare` is known."""

PAGE = "report.html"


def write_page(directory: Path) -> Path:
    """Write the page of the run in ``directory`` beside it, whole or not at all; its path.

    Raises:
        FileNotFoundError: When no run that is known lies there, or one that has not come to its end.
        ValueError: When what lies there is damaged, or of another version.
    """
    if (directory / COMPARISON).is_dir():
        _comparison(directory)
        return directory / PAGE
    if (directory / GROWTH).is_file():
        text = growth_page(directory / GROWTH)
    elif (directory / TRAINING).is_file():
        text = training_page(directory)
    else:
        raise FileNotFoundError(
            f"{directory}: expected a finished run of `esper grow` ({GROWTH}), one of `esper train` or `esper ppo` "
            f"({TRAINING}), or one of `esper compare` ({COMPARISON}/), and found none of these"
        )
    write(directory / PAGE, text)
    return directory / PAGE


def _comparison(directory: Path) -> None:
    study = open_study(directory)
    missing = [unit for unit in study.units if not study.is_finished(unit)]
    if missing:
        raise FileNotFoundError(
            f"{directory}: of this comparison {len(missing)} pieces are missing ({' on '.join(missing[0][::-1])} and "
            f"others); finish it by `esper compare --resume {directory}`"
        )
    write_report(study)


def growth_page(file: Path) -> str:
    """The page of a growth, from what `esper grow` has written.

    Raises:
        ValueError: When the file is damaged, or of another version.
    """
    found = read_json(file)
    if not isinstance(found, dict) or not {"growth", "test", "data"} <= found.keys():
        raise ValueError(f"'{file}': expected what `esper grow` writes, with 'growth', 'test' and 'data'; run it again")
    result = GrowthResult.from_json(found["growth"], str(file))
    return page(
        f"{result.policy} grew a network on {result.task}",
        growth_section(result),
        "<h2>Data and test</h2>",
        facts({**found["data"], **found["test"]}),
    )
