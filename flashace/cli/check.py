"""`flashace check`: what is wrong with labels."""

from typing import Any

import click

from flashace.cli.fields import LABEL_KEYS, WithFields
from flashace.cli.shared import check_output, label_keys, write_json
from flashace.cli.terminal import console


@click.command(cls=WithFields, fields=LABEL_KEYS)
@click.argument("data", nargs=-1, required=True)
@click.option("--json", "json_file", type=click.Path(), help="File for the findings, with all frames.")
def check(data: tuple[str, ...], json_file: str | None, **keys: Any) -> None:
    """What is wrong with the labels of DATA, how sure that is, and what mends it. Exit status 1 where something is surely wrong.

    Units, signs and orders of components are tested by a linear fit of seconds. DATA itself is never changed.
    """
    from flashace.check import check as check_labels
    from flashace.check.finding import finding_table, mends
    from flashace.evaluate import report

    check_output("--json", json_file, *data)
    findings, labels = check_labels(data, label_keys(keys))
    if json_file is not None:
        write_json(json_file, [finding.as_json() for finding in findings])
    console.print(report.label_table(labels))
    console.print(finding_table(findings))
    console.print(mends(findings), soft_wrap=True)
    wrong = [finding.what for finding in findings if finding.severity == "surely wrong"]
    if wrong:
        console.print(f"surely wrong: {'; '.join(wrong)}", soft_wrap=True)
        raise SystemExit(1)
