"""Print the page that lists every number of an observation, from the table.

python docs/observation.py > docs/observation.md
"""

from collections.abc import Sequence

from esper.observation import (
    PROSPECT_FIELDS,
    PROSPECT_SIZE,
    RUN_FIELDS,
    RUN_SIZE,
    SLOT_FIELDS,
    SLOT_SIZE,
    UNKNOWN,
    Field,
)

PAGE = """# What a controller sees

<!-- Made by docs/observation.py from the table in src/esper/observation/fields.py; do not edit by hand. -->

An observation of a network with S slots is {run} + {slot}·S numbers: {run} about the run, then {slot} about each slot,
in the order of the slots. Beside them stands the index of each slot's blueprint (−1 where the slot is empty). Every
known number lies in its range; what lies beyond is clipped. A number that is not known, or does not apply, is
**{unknown}**: outside every range, so that it cannot be taken for a zero.

`esper.observation.ObservationView` reads an observation by these names and gives `None` for what is not known;
`feature_names(S)` lists the names in order. Permuting the slots permutes their numbers and changes nothing else.

## About the run

{run_table}

## About each slot

{slot_table}

## About each prospect

What is known of each of the 13 blueprints in each slot before it is germinated: `prospects`, of shape
[S, 13, {prospect}]. `ObservationView.prospect(slot, blueprint, name)` reads it.

{prospect_table}
"""


def page() -> str:
    """The page, as Markdown."""
    return PAGE.format(
        run=RUN_SIZE,
        slot=SLOT_SIZE,
        unknown=f"{UNKNOWN:g}".replace("-", "−"),
        run_table=table(RUN_FIELDS),
        slot_table=table(SLOT_FIELDS),
        prospect=PROSPECT_SIZE,
        prospect_table=table(PROSPECT_FIELDS),
    )


def table(fields: Sequence[Field]) -> str:
    """One row per number; places count from 0."""
    rows = [f"| {i} | `{f.name}` | [{f.low:g}, {f.high:g}] | {f.meaning} |" for i, f in enumerate(fields)]
    return "\n".join(["| | name | range | meaning |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    print(page(), end="")
