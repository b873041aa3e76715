"""The alignment report as one HTML page that needs nothing else: readable without JavaScript, better with it.

Everything that comes from a record passes ``_text``: a file name in a report must not be able to run anything. The page
allows no script but its own (by hash) and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import shlex
from datetime import UTC, datetime
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1c20; --dim: #5c6370; --line: #d9dce1; --card: #f6f7f9;
  --good: #14713d; --good-back: #e2f4e9; --bad: #a81e1e; --bad-back: #fdeaea; --idle: #6b5a00; --idle-back: #fbf3d0;
  --bar: #3566c9; }
@media (prefers-color-scheme: dark) { :root { --back: #15171b; --text: #e6e8ec; --dim: #a0a7b4; --line: #343841;
  --card: #1e2127; --good: #7bd6a0; --good-back: #173325; --bad: #ff9c9c; --bad-back: #421f22; --idle: #e6cf6b;
  --idle-back: #383114; --bar: #7ba2f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.25rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
code, .mono { font-family: ui-monospace, monospace; font-size: .87em; overflow-wrap: anywhere; }
td:last-child, p { overflow-wrap: anywhere; } th { white-space: nowrap; }
.dim { color: var(--dim); }
.alarm { background: var(--bad-back); color: var(--bad); padding: .5rem .75rem; border-radius: 6px; }
.note { background: var(--idle-back); color: var(--idle); padding: .35rem .75rem; border-radius: 6px;
  margin: .35rem 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; padding: 0;
  margin: 1rem 0;
  list-style: none; }
.numbers li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .75rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.numbers li.bad b { color: var(--bad); } .numbers li.good b { color: var(--good); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--dim); font-weight: 600; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.tag { border-radius: 4px; padding: 0 .4rem; white-space: nowrap; font-size: .85em; }
.used, .exercised { background: var(--good-back); color: var(--good); }
.denied { background: var(--bad-back); color: var(--bad); }
.unused { background: var(--idle-back); color: var(--idle); }
.moot, .unknown { border: 1px solid var(--line); color: var(--dim); }
.track { position: relative; height: .8rem; background: var(--card); border-radius: 4px; min-width: 6rem; }
.track i { position: absolute; top: 0; bottom: 0; background: var(--bar); border-radius: 4px; min-width: 3px; }
ul.tree, ul.tree ul { list-style: none; margin: 0; padding-left: 1rem; border-left: 1px solid var(--line); }
ul.tree { padding-left: 0; border: 0; } .tree summary { cursor: pointer; } .tree li { padding: .1rem 0; }
#filter { display: none; gap: .5rem; flex-wrap: wrap; margin: 1rem 0; } .js #filter { display: flex; }
#filter select, #filter input { font: inherit; padding: .25rem .5rem; background: var(--card); color: var(--text);
  border: 1px solid var(--line); border-radius: 6px; max-width: 100%; }
[hidden] { display: none !important; }
@media (max-width: 640px) { table.wide thead { display: none; } table.wide tr { display: block; padding: .4rem 0;
  border-bottom: 1px solid var(--line); } table.wide td { display: block; border: 0; padding: .05rem 0; }
  table.wide td[data-name]::before { content: attr(data-name) " "; color: var(--dim); } }
"""

_SCRIPT = """
document.documentElement.classList.add('js');
const call = document.getElementById('call'), outcome = document.getElementById('outcome');
const words = document.getElementById('words');
function choose() {
  let shown = 0;
  for (const row of document.querySelectorAll('[data-call]')) {
    const miss = (call.value && row.dataset.call !== call.value) ||
      (outcome.value && row.dataset.outcome !== outcome.value) ||
      (words.value && !row.textContent.toLowerCase().includes(words.value.toLowerCase()));
    row.hidden = miss; shown += miss ? 0 : 1;
  }
  document.getElementById('shown').textContent = shown + ' shown';
}
for (const one of [call, outcome, words]) one.addEventListener('input', choose);
for (const row of document.querySelectorAll('[data-choose]'))
  row.addEventListener('click', () => {
    call.value = row.dataset.choose; choose(); document.getElementById('actions').scrollIntoView();
  });
choose();
"""

_AXES = ("filesystem", "exec", "network", "ipc", "syscalls")


def html(made: dict[str, Any]) -> str:
    """The page for a report's document."""
    from remit.cli.report import remarks

    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    record = made["record"]
    notes = remarks(made)
    body = [
        f"<h1>Session <code>{_text(made['session'])}</code></h1>",
        f'<p class="mono">{_text(shlex.join(made["command"]))}</p>',
        f'<p class="dim">{_text(_when(made["started"]))} · profile {_text(made["profile"])} · workspace '
        f"<code>{_text(made['workspace'])}</code> · granted by {_text(made['grantor'])}"
        + (f" · for: {_text(made['purpose'])}" if made["purpose"] else "")
        + "</p>",
        *(f'<p class="{"alarm" if note.startswith("THE RECORD") else "note"}">{_text(note)}</p>' for note in notes),
        _numbers(made),
        _calls(made),
        _tree(made),
        _network(made),
        _actions(made),
        _lowering(made),
        f'<p class="dim">Record: {record["lines"]} lines, {record["signed"]} of them signed'
        f"{'' if record['problem'] else '; the chain is whole'}. Leaks are counted here by the sandbox's own record, which "
        "cannot see its own blind spots.</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Alignment of session {_text(made['session'])}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script></body></html>"
    )


def _text(value: object) -> str:
    """Escaped for HTML; control characters and lone surrogates as escapes of their own."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return markup.escape(shown)


def _when(moment: float | None) -> str:
    return datetime.fromtimestamp(moment or 0, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _numbers(made: dict[str, Any]) -> str:
    totals = made["totals"]

    def one(name: str, value: object, tone: str = "") -> str:
        return f'<li class="{tone}"><span class="dim">{_text(name)}</span><b>{_text(value)}</b></li>'

    score = totals["alignment_score"]
    cards = [
        one("alignment score", _percent(score), "good" if score == 1 else "bad" if score is not None else ""),
        one("attempted", totals["attempted"]),
        one("exercised", totals["exercised"]),
        one("outside the grant", totals["violation_attempts"], "bad" if totals["violation_attempts"] else "good"),
        one("of these prevented", totals["prevented"]),
        one("leaked", totals["leaked"], "bad" if totals["leaked"] else "good"),
        one("false denials", totals["false_denials"], "bad" if totals["false_denials"] else "good"),
        one("grant lines unused", f"{totals['unused_grant_lines']} of {totals['grant_lines']}"),
        one("lowering slack", len(made["lowering"]["slack"])),
        one("moot (not Remit)", totals["moot"]),
    ]
    return f'<ul class="numbers">{"".join(cards)}</ul>'


def _calls(made: dict[str, Any]) -> str:
    calls = made["calls"]
    if not calls:
        return ""
    times = [atom["time"] for atom in made["atoms"]]
    begin = min(call["started"] for call in calls)
    end = max([call["ended"] or call["started"] for call in calls] + times)
    span = max(end - begin, 1e-6)
    rows: list[str] = []
    for call in calls:
        left = 100 * (call["started"] - begin) / span
        width = 100 * ((call["ended"] or end) - call["started"]) / span
        totals = call["totals"]
        status = "runs or killed" if call["status"] is None else f"exit {call['status']}"
        if call["limit"]:
            status += f", {call['limit']} limit"
        denied = f' <span class="tag denied">{totals["denied"]} denied</span>' if totals["denied"] else ""
        rows.append(
            f'<tr data-choose="{_text(call["call"])}"><td class="number" data-name="call">{_text(call["call"])}</td>'
            f'<td class="mono">{_text(shlex.join(call["argv"]))}</td><td class="number">{_text(status)}</td>'
            f'<td class="number">{(call["ended"] or end) - call["started"]:.2f} s</td>'
            f'<td><div class="track"><i style="left:{left:.2f}%;width:{min(width, 100 - left):.2f}%"></i></div></td>'
            f'<td><span class="tag exercised">{totals["exercised"]} exercised</span>{denied}</td></tr>'
        )
    head = "<tr><th>call</th><th>command</th><th>status</th><th>took</th><th>when</th><th>actions</th></tr>"
    return f'<h2>Timeline of calls</h2><table class="wide" id="calls"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _tree(made: dict[str, Any]) -> str:
    """Granted objects and what was denied, by axis, as a tree of names."""
    parts: list[str] = []
    for axis in _AXES:
        entries: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
        for line in made["grant_lines"]:
            if line["axis"] == axis:
                state = {True: "used", False: "unused", None: "unknown"}[line["used"]]
                entries.setdefault(_parts(line["object"]), []).append((state, line["right"], line["source"]))
        for atom in made["atoms"]:
            if atom["axis"] == axis and atom["outcome"] == "denied":
                tag = ("denied", atom["right"], shlex.join(atom["missing"]) or atom["source"])
                held = entries.setdefault(_parts(atom["object"]), [])
                if tag not in held:
                    held.append(tag)
        if entries:
            inside = _branch(entries, ())
            parts.append(f"<li><details open><summary><b>{axis}</b></summary><ul>{inside}</ul></details></li>")
    legend = (
        '<p class="dim"><span class="tag used">granted, used</span> <span class="tag unused">granted, not used</span> '
        '<span class="tag unknown">granted, use not recorded</span> <span class="tag denied">attempted, denied</span></p>'
    )
    return f'<h2>Authority</h2>{legend}<ul class="tree" id="authority">{"".join(parts)}</ul>'


def _parts(name: str) -> tuple[str, ...]:
    if not name.startswith("/"):
        return (name,)
    first, *rest = name.strip("/").split("/")
    return (f"/{first}", *rest)


def _branch(entries: dict[tuple[str, ...], list[tuple[str, str, str]]], above: tuple[str, ...]) -> str:
    depth = len(above)
    below = sorted({name[: depth + 1] for name in entries if len(name) > depth and name[:depth] == above})
    out: list[str] = []
    for name in below:
        # A chain of directories in which nothing branches is one line.
        whole = name
        while whole not in entries:
            following = {
                other[: len(whole) + 1] for other in entries if other[: len(whole)] == whole and len(other) > len(whole)
            }
            if len(following) != 1:
                break
            whole = following.pop()
        tags = " ".join(
            f'<span class="tag {state}" title="{_text(where)}">{_text(right)} {_text(state)}</span>'
            for state, right, where in entries.get(whole, ())
        )
        label = f"<code>{_text('/'.join(whole[depth:]))}</code> {tags}"
        inside = _branch(entries, whole)
        # What is only known to have been granted is folded away.
        told = any(
            tag[0] != "unknown" for other, held in entries.items() if other[: len(whole)] == whole for tag in held
        )
        opened = " open" if told else ""
        out.append(
            f"<li><details{opened}><summary>{label}</summary><ul>{inside}</ul></details></li>"
            if inside
            else f"<li>{label}</li>"
        )
    return "".join(out)


def _network(made: dict[str, Any]) -> str:
    atoms = [atom for atom in made["atoms"] if atom["axis"] == "network"]
    if not atoms:
        return '<h2>Network endpoints</h2><p class="dim">None was tried.</p>'
    rows = "".join(
        f'<tr data-call="{_text(a["call"])}" data-outcome="{a["outcome"]}"><td class="mono">{_text(a["object"])}</td>'
        f'<td>{_text(a["right"])}</td><td>{_tag(a["outcome"])}</td><td class="number">{a["attempts"]}x</td>'
        f'<td class="mono">{_text(_programs(a))}</td><td>{_text(a["source"] or a["line"])}</td></tr>'
        for a in atoms
    )
    return f'<h2>Network endpoints</h2><table class="wide" id="endpoints"><tbody>{rows}</tbody></table>'


def _tag(outcome: str) -> str:
    return f'<span class="tag {outcome}">{outcome}</span>'


def _programs(atom: dict[str, Any]) -> str:
    return ", ".join(one.rpartition("/")[2] for one in atom["programs"])


def _actions(made: dict[str, Any]) -> str:
    order = {"denied": 0, "exercised": 1, "moot": 2}
    atoms = sorted(made["atoms"], key=lambda atom: (order[atom["outcome"]], atom["time"]))
    rows: list[str] = []
    for atom in atoms:
        more = shlex.join(atom["missing"])
        decided = _text(atom["source"] or atom["line"])
        if more:
            decided += f'<br><span class="dim">would be allowed by</span> <code>{_text(more)}</code>'
        elif atom["note"]:
            decided += f'<br><span class="dim">{_text(atom["note"])}</span>'
        wrong = "" if atom["outcome"] == "moot" or atom["in_grant"] == (atom["outcome"] == "exercised") else " ⚠"
        rows.append(
            f'<tr data-call="{_text(atom["call"])}" data-outcome="{atom["outcome"]}"><td>{_tag(atom["outcome"])}{wrong}</td>'
            f'<td class="number" data-name="call">{_text(atom["call"])}</td><td>{_text(atom["right"])}</td>'
            f'<td class="mono">{_text(atom["object"])}</td><td class="mono">{_text(_programs(atom))}</td>'
            f'<td class="number">{atom["attempts"]}x</td><td>{decided}</td></tr>'
        )
    choices = "".join(f'<option value="{_text(c["call"])}">call {_text(c["call"])}</option>' for c in made["calls"])
    filters = (
        '<div id="filter"><select id="call" aria-label="call"><option value="">every call</option>'
        f'{choices}</select><select id="outcome" aria-label="outcome"><option value="">every outcome</option>'
        "<option>denied</option><option>exercised</option><option>moot</option></select>"
        '<input id="words" type="search" placeholder="words" aria-label="words"><span id="shown" class="dim"></span></div>'
    )
    head = "<tr><th>outcome</th><th>call</th><th>right</th><th>object</th><th>program</th><th></th><th>decided by</th></tr>"
    return (
        f'<h2 id="actions">Actions</h2>{filters}<table class="wide" id="atoms"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _lowering(made: dict[str, Any]) -> str:
    out: list[str] = []
    for part, meaning in (
        ("slack", "enforced wider than granted"),
        ("deficit", "enforced narrower than granted"),
        ("unenforceable", "not enforceable on this host"),
    ):
        lines = made["lowering"][part]
        if lines:
            items = "".join(
                f"<li>{_text(one['axis'])}: {_text(one['right'])} <code>{_text(one['object'])}</code>: {_text(one['note'])}</li>"
                for one in lines
            )
            out.append(f'<p><b>{part}</b> <span class="dim">({meaning})</span></p><ul>{items}</ul>')
    return f"<h2>Lowering</h2>{''.join(out)}" if out else ""
