"""The description of the API: an OpenAPI document, and a page that shows it without a script or a network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from qabuild.serving import open_inference
from qabuild.serving.open_inference import OUTPUTS
from qabuild.serving.protocol import TEXTS
from qabuild.serving.request_parameters import PARAMETERS, schemas
from qabuild.serving.settings import Settings
from qabuild.system.version import VERSION

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>qabuild {version}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: .2rem 1rem .2rem 0; vertical-align: top }}
pre {{ background: #f4f4f4; color: #222; padding: 1rem; overflow: auto }}
</style>
<h1>qabuild {version}</h1>
<table>
{rows}
</table>
<h2>OpenAPI</h2>
<pre>{document}</pre>
</html>
"""


def page(settings: Settings) -> str:
    """The page of `/docs`."""
    described = document(settings)
    rows = "\n".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(operation['summary'])}</td></tr>"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    )
    return PAGE.format(version=VERSION, rows=rows, document=escape(json.dumps(described, indent=2)))


def document(settings: Settings) -> dict[str, Any]:
    """The document of `/openapi.json`."""
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "qabuild", "version": VERSION},
        "paths": {
            "/answer": {"post": _operation("Answer questions.", "Answered", "Asked")},
            "/healthz": {"get": _operation("Whether the process lives.", "Object")},
            "/readyz": {"get": _operation("Whether questions can be asked, and what changed on the disk.", "Object")},
            "/metrics": {
                "get": {
                    "summary": "Counts and durations for Prometheus.",
                    "responses": {"200": {"description": "Metrics.", "content": {"text/plain": {}}}},
                }
            },
            "/v2": {"get": _operation("The server, in the Open Inference Protocol.", "Object")},
            "/v2/health/live": {"get": _operation("Whether the process lives.", "Object")},
            "/v2/health/ready": {"get": _operation("Whether questions can be asked.", "Object")},
            "/v2/models/{name}": {"get": _operation("The tensors of a model.", "Object", named=True)},
            "/v2/models/{name}/ready": {"get": _operation("Whether a model can be asked.", "Object", named=True)},
            "/v2/models/{name}/infer": {
                "post": _operation("Answer the tensors question and context.", "Object", "Inference", named=True)
            },
        },
        "components": {"schemas": _schemas(settings)},
    }
    if settings.token is not None:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _operation(summary: str, result: str, body: str | None = None, *, named: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Success.", "content": _json(result)},
            "default": {"description": "An error, in one line.", "content": _json("Error")},
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    if named:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _schemas(settings: Settings) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    texts = dict.fromkeys(TEXTS, text)
    model = {"type": ["string", "null"], "description": "Name of an artifact; needed if there are several."}
    common = {"model": model, **schemas(PARAMETERS)}
    answer = {
        "type": "object",
        "properties": {
            "answer": {"type": "string"},
            "score": {"type": "number"},
            "start": {"type": "integer", "description": "Characters of the context."},
            "end": {"type": "integer"},
            "question_truncated": {"const": True},
        },
        "required": ["answer", "score", "start", "end"],
    }
    result = {"oneOf": [_ref("Answer"), {"type": "array", "items": _ref("Answer"), "description": "With a top_k."}]}
    tensor = _object(
        {
            "name": {"enum": list(TEXTS)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2},
            "datatype": {"const": "BYTES"},
            "data": {"type": "array", "description": "Strings; with a dimension of 1, they may be nested in lists."},
            "parameters": {"description": "Without effect."},
        },
        ["name", "shape", "datatype", "data"],
    )
    output = _object({"name": {"enum": list(OUTPUTS)}, "parameters": {"description": "Without effect."}}, ["name"])
    items = {"type": "array", "items": _object(texts, TEXTS), "maxItems": settings.max_queue}
    return {
        "Object": {"type": "object"},
        "Error": _object({"error": {"type": "string"}}, ["error"]),
        "Answer": answer,
        "Result": result,
        "Asked": {
            "oneOf": [
                _object({**texts, **common}, TEXTS),
                _object({"items": items, **common}, ["items"]),
            ]
        },
        "Answered": {
            "oneOf": [_ref("Result"), _object({"results": {"type": "array", "items": _ref("Result")}}, ["results"])]
        },
        "Inference": _object(
            {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": tensor},
                "outputs": {"type": "array", "items": output},
                "parameters": _object(schemas(open_inference.PARAMETERS), []),
            },
            ["inputs"],
        ),
    }


def _object(properties: Any, required: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
