"""One page of Markdown for each kind of causal evidence; CPR never stands there alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Told = Mapping[str, Any]
_SHOWN = 12
"""Nodes, and reasons of dropped rows, that a page lists."""
_WHOLE = 1000
"""Numbers from here on are told without a fraction."""


def page(kind: str, told: Told, provenance: Told) -> str:
    """The report as one page.

    Args:
        kind: `circuit`, `causal_variable`, `feature_gate`, `layer_advice` or `edit_audit`.
        told: The report as JSON has it.
        provenance: What was asked of which model.
    """
    lines = [f"# {kind.replace('_', ' ').capitalize()}", "", *_PAGES[kind](told), ""]
    lines += ["## Rows that fell out", "", *_dropped(_lost(told)), ""]
    lines += ["## Provenance", "", *_table(("what", "is"), list(provenance.items()))]
    return "\n".join(lines) + "\n"


def _circuit(told: Told) -> list[str]:
    asked, (low, high) = told["settings"], told["interval"]
    halves = (
        f"{told['found_by']} find and {told['judged_by']} judge"
        if asked["held_out"]
        else "all of them find and judge"
    )
    lines = [f"`{asked['method']}` at {asked['level']} level; pairs {_kept(told)}: {halves}.", ""]
    lines += [
        f"m(full) {_n(told['m_full'])}, m(empty) {_n(told['m_empty'])}; "
        f"their difference is in [{_n(low)}, {_n(high)}]."
    ]
    if parity := told.get("parity"):
        lines += ["", f"**In the reference's own ways**: {', '.join(parity)}."]
    if told["inconclusive"]:
        return [*lines, f"**Inconclusive**: {told['inconclusive']}."]
    areas = [("CMD (0 is best)", told["cmd"], told["floor"]["cmd"], told["cmd_log"])]
    areas += [("CPR (unbounded)", told["cpr"], told["floor"]["cpr"], told["cpr_log"])]
    lines += ["", *_table(("area", "value", "f = 0 below 100 %", "over log k"), areas), ""]
    curve = [
        (f"{100 * p['k']:g} %", p["n_edges"], p["f_signed"], p["f_absolute"]) for p in told["curve"]
    ]
    lines += _table(("k", "edges", "f, signed scores", "f, absolute scores"), curve)
    nodes = [(n["name"], n["score"], n["share"]) for n in told["top_nodes"][:_SHOWN]]
    return [*lines, "", "## Nodes", "", *_table(("node", "score", "share"), nodes)]


def _variable(told: Told) -> list[str]:
    asked = told["settings"]["featurizer"]["kind"]
    lines = [
        f"`{told['variable']}` with `{asked}`; rows {_kept(told)}: {told['trained']} train and "
        f"{told['scored']} are scored.",
        "",
    ]
    if (best := told["best"]) is not None:
        lines += [f"Best: {', '.join(best['units'])}, {told['metric']} {_measured(best)}.", ""]
    rows = [
        (
            cell["layer"],
            ", ".join((cell["place"], *cell["saes"])),
            "all" if cell["features"] is None else cell["features"],
            ", ".join(f"{name} {_n(v)}" for name, v in cell["values"].items()),
            cell["refused"] or _measured(cell),
        )
        for cell in told["cells"]
    ]
    lines += _table(("layer", "position", "features", f"{told['metric']} by set", "mean"), rows)
    lines += _fewer(told)
    for name, others in told["indistinct"].items():
        lines += ["", f"**{name}** cannot tell the variable from {', '.join(others)}."]
    if left_out := told.get("left_out", {}):
        lines += ["", *(f"No {name}: {why['problem']}" for name, why in left_out.items())]
    if (why := told.get("unsaved")) is not None:
        lines += ["", f"**Nothing is saved**: {why['problem']} {why['remedy']}"]
    nothing = told["control"].get("no_op", {})
    return [*lines, "", f"Doing nothing: {', '.join(f'{k} {_n(v)}' for k, v in nothing.items())}."]


def _fewer(told: Told) -> list[str]:
    """Where the rows have fewer directions than were asked for, how many they have."""
    asked = told["settings"]["featurizer"]
    if asked["kind"] not in ("pca", "svd") or asked["n"] is None:
        return []
    has = [c["features"] / len(c["units"]) for c in told["cells"] if c["features"] is not None]
    if min(has, default=asked["n"]) >= asked["n"]:
        return []
    said = f"{asked['n']} directions were asked for; the rows have {_n(min(has))} of a unit."
    return ["", said]


def _gates(told: Told) -> list[str]:
    rows = [
        (
            " ".join(map(str, gate["features"])),
            gate["verdict"],
            _measured(gate["iia"]),
            _measured(gate["iia_random_matched"]),
            gate["bar"],
            _measured(gate["effect_on_metric"]),
            _measured(gate["off_target_kl"]),
            gate["output_score"],
        )
        for gate in told["gates"]
    ]
    names = ("feature", "verdict", "IIA", "random, matched", "bar", "steered", "KL", "output score")
    reasons = [
        f"- {' '.join(map(str, g['features']))}: {r}" for g in told["gates"] for r in g["reasons"]
    ]
    asked = told["settings"]
    whole = (
        f"`{told['sae']}`, layer {told['layer']}, at {asked['position']}; rows {_kept(told)}. "
        f"The whole unit's IIA is {_measured(told['iia_full_vector'])}."
    )
    strength = (
        f"Steered at strength {_n(asked['strength'])} (times the largest code at the neutral "
        "prompt): nothing is said of a larger one."
    )
    return [whole, "", strength, "", *_table(names, rows), "", *reasons]


def _advice(told: Told) -> list[str]:
    effects = list(told["layers"][0]["effects"])
    rows = [
        (
            one["layer"],
            *(_measured(one["effects"][name]) for name in effects),
            _measured(one["score"]),
        )
        for one in told["layers"]
    ]
    range_ = told["recommended"]
    advice = "none" if range_ is None else f"layers {range_[0]} to {range_[1]}"
    lines = [f"Recommended by `{told['by']}`: **{advice}**; pairs {_kept(told)}.", ""]
    lines += [f"m(clean) - m(corrupted) is {_measured(told['lost'])}.", ""]
    if told["inconclusive"]:
        lines += [f"**Inconclusive**, so no share is told: {told['inconclusive']}.", ""]
    if (targets := told["targets"]) is not None:
        lines.insert(
            1, f"Visual tokens are still read behind target layers {targets[0]} to {targets[1]}."
        )
    return [*lines, *_table(("layer", *effects, "attribution"), rows), "", *told["notes"]]


def _audit(told: Told) -> list[str]:
    rows = [
        (
            suite["name"],
            suite["verdict"],
            _kept(suite),
            suite["m_before"],
            suite["m_after"],
            "[{}, {}]".format(*map(_n, suite["change"])),
            suite["unchanged"],
            suite["drift"],
            _drift(suite["circuit"]),
        )
        for suite in told["suites"]
    ]
    names = ("suite", "verdict", "pairs", "before", "after", "change", "unchanged", "drift")
    lines = [f"Verdict: **{told['verdict']}**.", ""]
    if not told["settings"]["circuit"]:
        lines += ["No circuit was compared: `circuit: false`.", ""]
    reasons = [
        f"- {suite['name']}: {reason}" for suite in told["suites"] for reason in _open(suite, told)
    ]
    return [*lines, *_table((*names, "f of the old circuit"), rows), "", *reasons]


def _open(suite: Told, told: Told) -> Iterator[str]:
    """Why nothing is said of a suite."""
    if suite["verdict"] != "inconclusive":
        return
    if suite["pairs"] < (least := told["settings"]["least"]):
        yield f"{suite['pairs']} pairs are kept, and {least} are needed."
    if (circuit := suite["circuit"]) is not None:
        yield f"f of the old circuit cannot be told: {circuit['inconclusive'] or 'it has none'}."


def _drift(told: Told | None) -> str:
    if told is None:
        return "-"
    both = ", ".join(
        f"{100 * float(k):g} %: {_n(f)} -> {_n(told['f_after'][k])}"
        for k, f in told["f_before"].items()
    )
    areas = f"CMD {_n(told['cmd_before'])} -> {_n(told['cmd_after'])}"
    return f"{both}; {areas}; scores correlate {_n(told['score_correlation'])}"


_PAGES: Mapping[str, Callable[[Told], list[str]]] = {
    "circuit": _circuit,
    "causal_variable": _variable,
    "feature_gate": _gates,
    "layer_advice": _advice,
    "edit_audit": _audit,
}


def _kept(told: Told) -> str:
    """Rows that were used, of those that were brought."""
    kept = told["kept"] if "kept" in told else told["pairs"]
    return f"{kept} of {kept + len(told['dropped'])}"


def _lost(told: Told) -> list[Told]:
    """Rows that fell out; of an audit those of all suites."""
    return [row for part in (told, *told.get("suites", ())) for row in part.get("dropped", ())]


def _dropped(rows: Sequence[Told]) -> list[str]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    told = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"- {count} times: {reason}" for reason, count in told[:_SHOWN]]
    if rest := told[_SHOWN:]:
        more = sum(count for _, count in rest)
        lines.append(f"- and {more} more rows, for {len(rest)} other reasons")
    return lines or ["None."]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(_n(cell) for cell in row)} |" for row in rows]


def _measured(told: Told | None) -> str:
    if told is None:
        return "-"
    return f"{_n(told['value'])} [{_n(told['low'])}, {_n(told['high'])}]"


def _n(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= _WHOLE else f"{value:.3g}"
    return str(value)
