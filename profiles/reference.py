"""The part of ``docs/profiles.md`` that the schema's table writes: every table and key, and every placeholder."""

from __future__ import annotations

from remit.profiles.schema import PLACEHOLDERS, TABLES, Key, Shape, keys_of

BEGIN = "<!-- Made from profiles/schema.py by remit.profiles.reference; a test keeps it equal. -->"
END = "<!-- End of what is made from the table. -->"


def markdown() -> str:
    """Everything between ``BEGIN`` and ``END`` in the page, both included."""
    lines = [BEGIN, ""]
    for table, meaning in TABLES.items():
        lines += [f"### {f'`[{table}]`' if table else 'Top level'}", "", meaning, ""]
        lines += ["| key | meaning | example | under `extends` |", "|---|---|---|---|"]
        lines += [_row(key) for key in keys_of(table)]
        lines.append("")
        for key in keys_of(table):
            if key.fields:
                lines += [f"### `[[{key.dotted}]]`", "", key.meaning, ""]
                lines += ["| key | meaning | example | under `extends` |", "|---|---|---|---|"]
                lines += [_row(field) for field in key.fields]
                lines.append("")
    lines += ["### Placeholders", "", "| placeholder | meaning |", "|---|---|"]
    lines += [f"| `{{{name}}}` | {_cell(meaning)} |" for name, meaning in PLACEHOLDERS.items()]
    lines += ["", END]
    return "\n".join(lines)


def _row(key: Key) -> str:
    meaning = key.meaning
    if key.required:
        meaning += " Required."
    if key.unit:
        meaning += f" Unit: {key.unit}."
    if key.choices and key.shape is Shape.LIST:
        meaning += f" Of {', '.join(f'`{choice}`' for choice in key.choices)}."
    elif key.choices:
        meaning += f" {' or '.join(f'`{choice}`' for choice in key.choices)}."
    if key.default:
        meaning += f" Default: `{key.default}`."
    return f"| `{key.name}` | {_cell(meaning)} | `{_cell(key.example)}` | {key.merge} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
