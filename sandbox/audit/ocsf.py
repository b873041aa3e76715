"""Events in the form of the Open Cybersecurity Schema Framework, 1.3.0 (schema.ocsf.io).

Classes: File System Activity (1001), Process Activity (1007), Network Activity (4001), and Detection of the rest as
Process Activity. ``disposition_id`` 1 is allowed, 2 blocked; ``status_id`` 1 success, 2 failure. What the schema has no
place for is in ``unmapped``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import remit

if TYPE_CHECKING:
    from remit.sandbox.audit.log import Log
    from remit.sandbox.events.event import Event

_VERSION = "1.3.0"
_FILE = {"read": (2, "Read"), "write": (3, "Update"), "remove": (4, "Delete"), "setuid": (6, "Set Attributes")}
_CLASSES = {1001: ("File System Activity", 1), 1007: ("Process Activity", 1), 4001: ("Network Activity", 4)}


def event(one: Event, log: Log) -> dict[str, object]:
    """One event."""
    more: dict[str, Any]
    if one.axis == "filesystem":
        kind = 1001
        activity, name = _FILE.get(one.right, (99, one.right))
        more = {"file": {"path": one.object, "name": one.object.rpartition("/")[2], "type_id": 0}}
    elif one.axis == "network":
        kind = 4001
        activity, name = (1, "Open") if one.right == "connect" else (7, "Listen")
        host, _, port = one.object.rpartition(":")
        more = {"dst_endpoint": {"ip": host.strip("[]"), "port": int(port) if port.isdigit() else 0}}
    elif one.axis == "exec":
        kind, activity, name = 1007, 1, "Launch"
        more = {"process": {"file": {"path": one.object, "name": one.object.rpartition("/")[2], "type_id": 1}}}
    else:
        kind, activity, name = 1007, 99, one.right or "call"
        more = {"process": {"name": one.object}}
    title, category = _CLASSES[kind]
    denied = one.denied
    return {
        "activity_id": activity,
        "activity_name": name,
        "category_uid": category,
        "class_uid": kind,
        "class_name": title,
        "type_uid": kind * 100 + activity,
        "time": int(one.time * 1000),
        "severity_id": 3 if denied else 1,
        "action_id": 2 if denied else 1,
        "disposition_id": 2 if denied else 1,
        "status_id": 2 if denied or one.moot else 1,
        "status_code": one.errno or None,
        "actor": {
            "process": {"pid": one.pid, "file": {"path": one.exe, "name": one.exe.rpartition("/")[2], "type_id": 1}},
            "session": {"uid": log.identifier},
        },
        "metadata": {
            "version": _VERSION,
            "uid": one.id,
            "product": {"name": "Remit", "vendor_name": "Remit", "version": remit.__version__},
            "profiles": ["security_control"],
        },
        "firewall_rule": {"name": one.rule.text, "desc": one.rule.where},
        "unmapped": {
            "call": one.call,
            "grant": one.grant,
            "syscall": one.syscall,
            "axis": one.axis,
            "right": one.right,
            "verdict": one.verdict,
            "certainty": one.certainty,
            "layer": one.layer,
            "source": one.source,
        },
        **more,
    }
