"""Markdown for docs/benchmarks.md, from the rounds of a race."""

import os
import platform
from statistics import median

SHARES = ["data", "indexes", "constraints", "analyze"]
PEERS = ["pgcopydb", "dump -Fd -j", "dump | restore"]


def spread(values, digits=1):
    """Median with the least and the most."""
    values = sorted(values)
    text = f"{median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({values[0]:.{digits}f}–{values[-1]:.{digits}f})"


def cell(text):
    return text.replace("|", "\\|")


def mb(size):
    return f"{size / 1e6:,.0f} MB"


def machine():
    with open("/proc/meminfo", encoding="utf8") as f:
        memory = int(f.readline().split()[1]) / (1 << 20)
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory"


def ratios(by_name):
    """(peer, ratio) of Handover to its best peer, and its ratio to the floor; pairs of one round, then the median."""
    ours = by_name.get("handover")
    if not ours:
        return None, None
    whole = {name: r for name, r in by_name.items() if len(r) == len(ours)}
    peers = [name for name in PEERS if name in whole]
    best = min(peers, key=lambda name: median(r["seconds"] for r in whole[name]), default=None)

    def against(name):
        return [a["seconds"] / b["seconds"] for a, b in zip(ours, whole[name])]

    return best and (best, against(best)), "floor" in whole and against("floor") or None


def table(results, facts):
    """The whole section."""
    by_name = {}
    for result in results:
        if result["lost"] is None:
            by_name.setdefault(result["name"], []).append(result)
    lines = [
        f"`{facts['command']}`, {facts['date']}, {facts['versions']}; {machine()}.",
        "",
        f"Data: {facts['data']}. {facts['rounds']} rounds, interleaved, each into an empty database after a CHECKPOINT on both"
        f" servers; {facts['jobs']} jobs, tables cut at {facts['split_mb']} MB. Both servers: {facts['settings']}.",
        "",
        "| | seconds, median (min–max) | CPU seconds | blue | green | client | WAL | others' CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in by_name.items():
        def col(key, digits=1, rounds=rounds):
            return f"{median(r[key] for r in rounds):.{digits}f}"
        cpu = median(r["blue_cpu"] + r["green_cpu"] + r["client"] for r in rounds)
        lines.append(
            f"| {cell(name)} | {spread([r['seconds'] for r in rounds])} | {cpu:.1f} | {col('blue_cpu')} | {col('green_cpu')} |"
            f" {col('client')} | {mb(median(r['wal'] for r in rounds))} | {col('others')} |")
    for result in results:
        if result["lost"] is not None:
            lines.append(f"| {cell(result['name'])} | not timed: {cell(result['lost'])} | | | | | | |")
    lines += [
        "",
        "Where it goes: seconds in which at least one of green's backends worked on it / CPU seconds of those backends.",
        "",
        "| | " + " | ".join(SHARES) + " | rest of green's CPU |",
        "|" + " --- |" * (len(SHARES) + 2),
    ]
    for name, rounds in by_name.items():
        cells = [f"{median(r['busy'][s] for r in rounds):.1f} / {median(r['cpu'][s] for r in rounds):.1f}" for s in SHARES]
        rest = median(r["green_cpu"] - sum(r["cpu"][s] for s in SHARES) for r in rounds)
        lines.append(f"| {cell(name)} | " + " | ".join(cells) + f" | {rest:.1f} |")
    best, floor = ratios(by_name)
    lines.append("")
    if best:
        lines.append(f"Handover / best peer ({best[0]}): **{spread(best[1], 2)}**")
    if floor:
        lines.append(f"Handover / floor: **{spread(floor, 2)}**")
    memory = [r["memory"] for r in by_name.get("handover", [])]
    if memory:
        lines.append(f"Peak memory of the engine (`VmHWM`): {max(memory) / (1 << 20):.1f} MiB")
    return "\n".join(lines) + "\n"


def memory_table(rows, facts):
    lines = [
        f"`{facts['command']}`, {facts['date']}, {facts['versions']}.", "",
        "| tables | peak memory of the engine (`VmHWM`) |", "| --- | --- |",
    ]
    lines += [f"| {mb(size)} | {peak / (1 << 20):.1f} MiB |" for size, peak in rows]
    apart = (max(p for _, p in rows) - min(p for _, p in rows)) / (1 << 20)
    lines += ["", f"Apart by {apart:.1f} MiB: {'the same within 10 MB' if apart * 1.048576 <= 10 else '**more than 10 MB**'}."]
    return "\n".join(lines) + "\n"
