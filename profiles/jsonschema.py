"""The JSON Schema of a profile, made from the table in ``schema``, so that editors complete and check.

It cannot be as strict as the parser (the forms of addresses, say), and never stricter: what the parser takes, it takes.
The shipped copy is ``profile.schema.json``; a test keeps it equal to what ``text()`` gives.
"""

from __future__ import annotations

from remit.profiles.schema import (
    FORMAT,
    KEYS,
    NAME_PATTERN,
    PACKAGE_INDEXES,
    PATH_PLACEHOLDERS,
    TABLES,
    Key,
    Kind,
    Shape,
    keys_of,
)
from remit.sandbox.authority.web import METHODS, ORIGINS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_START = rf"(?:/|~(?:/|$)|\{{(?:{'|'.join(PATH_PLACEHOLDERS)})\}}(?:/|$))"
_INDEX = rf"\{{package_index(?::(?:{'|'.join(PACKAGE_INDEXES)}))?\}}"


def schema() -> dict[str, object]:
    """The schema as JSON values."""
    properties: dict[str, object] = {}
    for key in keys_of(""):
        properties[key.name] = _key(key)
    for table, meaning in TABLES.items():
        if table:
            properties[table] = {
                "description": meaning,
                "type": "object",
                "additionalProperties": False,
                "properties": {key.name: _key(key) for key in keys_of(table)},
            }
    return {
        "$schema": DIALECT,
        "title": "Remit profile",
        "description": "A named, reusable authority.",
        "type": "object",
        "additionalProperties": False,
        "required": [key.name for key in KEYS if key.required],
        "properties": properties,
    }


def text() -> str:
    """The schema as the text of ``profile.schema.json``."""
    import json

    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _key(key: Key) -> dict[str, object]:
    about: dict[str, object] = {"description": key.meaning + (f" Unit: {key.unit}." if key.unit else "")}
    if key.default:
        about["default"] = key.default == "true" if key.kind is Kind.BOOLEAN else key.default
    value = _value(key)
    if key.shape is Shape.LIST:
        return {**about, "type": "array", "items": value}
    if key.shape is Shape.RECORDS:
        record = {
            "type": "object",
            "additionalProperties": False,
            "required": [field.name for field in key.fields if field.required],
            "properties": {field.name: _key(field) for field in key.fields},
        }
        return {**about, "type": "array", "items": record}
    if key.shape is Shape.MAP:
        names = {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
        return {**about, "type": "object", "propertyNames": names, "additionalProperties": value}
    return {**about, **value}


def _value(key: Key) -> dict[str, object]:
    text: dict[str, object] = {"type": "string"}
    match key.kind:
        case Kind.FORMAT:
            return {"const": FORMAT}
        case Kind.BOOLEAN:
            return {"type": "boolean"}
        case Kind.CHOICE | Kind.SYSCALL_GROUP:
            return {"enum": list(key.choices)}
        case Kind.NAME:
            return {**text, "pattern": f"^{NAME_PATTERN}$"}
        case Kind.PARENT:
            return {**text, "pattern": rf"^(?:{NAME_PATTERN}|\./.+\.toml)$"}
        case Kind.PATH:
            return {**text, "pattern": f"^{_START}" + (r"|^\{toolchains\}$" if key.toolchains else "")}
        case Kind.PATTERN:
            return {**text, "pattern": rf"^(?:{_START}|\*\*/)"}
        case Kind.ENDPOINT:
            return {**text, "pattern": rf"^(?:{_INDEX}|.+:(?:[0-9]+|\*)(?:/(?:tcp|udp))?)$"}
        case Kind.PORT:
            return {
                "anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {**text, "pattern": "^[1-9][0-9]{0,4}$"}]
            }
        case Kind.LIMIT:
            # A bare number has no unit of time; only CPUs come in fractions.
            if key.name in ("time", "cpu-time", "connection-time"):
                return text
            number = "number" if key.name == "cpu" else "integer"
            return {"anyOf": [{"type": number, "exclusiveMinimum": 0}, text]}
        case Kind.ENVIRONMENT_NAME:
            return {**text, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
        case Kind.METHOD:
            return {"enum": list(METHODS)}
        case Kind.HTTP_PATH:
            return {**text, "pattern": "^/"}
        case Kind.ORIGIN:
            return {**text, "pattern": f"^(?:{'|'.join(ORIGINS)}):"}
        case Kind.DEVICE:
            return {**text, "pattern": "^[A-Za-z0-9]"}
        case _:
            return text
