"""Check of result.json against the schema of a method, in the part of JSON Schema that these schemas use."""

from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}
_KNOWN = {
    "$schema", "title", "description", "type", "required", "properties", "additionalProperties", "items",
    "enum", "minimum", "maximum", "minItems",
}  # fmt: skip


def check_result(result: Any, schema: dict[str, Any]) -> None:
    """Raises ValueError listing what does not fit.

    Understands type, required, properties, additionalProperties, items, enum, minimum, maximum, minItems.
    Raises NotImplementedError for any other keyword, rather than pass over a condition.
    """
    faults = list(_faults(result, schema, "result"))
    if faults:
        raise ValueError("; ".join(faults[:5]) + ("; ..." if len(faults) > 5 else ""))


def _faults(value: Any, schema: dict[str, Any], at: str):
    unknown = sorted(set(schema) - _KNOWN)
    if unknown:
        raise NotImplementedError(
            f"schema of {at} uses {', '.join(unknown)}, which check_result does not know"
        )
    if "type" in schema:
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in allowed):
            yield f"{at} is {value!r}, not of type {' or '.join(allowed)}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}, not one of {schema['enum']}"
    if _is(value, "number"):
        if value < schema.get("minimum", value):
            yield f"{at} is {value}, below {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield f"{at} is {value}, above {schema['maximum']}"
    if isinstance(value, dict):
        yield from (f"{at} lacks {name}" for name in schema.get("required", []) if name not in value)
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        for name, entry in value.items():
            if name in properties:
                yield from _faults(entry, properties[name], f"{at}.{name}")
            elif rest is False:
                yield f"{at} has {name}, which is not in the schema"
            elif isinstance(rest, dict):
                yield from _faults(entry, rest, f"{at}.{name}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at} has {len(value)} entries, fewer than {schema['minItems']}"
        for number, entry in enumerate(value):
            yield from _faults(entry, schema.get("items", {}), f"{at}[{number}]")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])
