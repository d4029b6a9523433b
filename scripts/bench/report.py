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


def work(result):
    """CPU seconds of both servers and the client."""
    return result["blue_cpu"] + result["green_cpu"] + result["client"]


def ratios(by_name):
    """Lines on Handover against its best peer and the floor: of each round's pair, then the median."""
    ours = by_name.get("handover")
    if not ours:
        return
    whole = {name: r for name, r in by_name.items() if len(r) == len(ours)}
    for what, key in (("seconds", lambda r: r["seconds"]), ("CPU seconds", work)):
        best = min((n for n in PEERS if n in whole), key=lambda n: median(key(r) for r in whole[n]), default=None)
        for label, name in ((f"best peer, {best}", best), ("floor", "floor")):
            if name in whole:
                pairs = [key(a) / key(b) for a, b in zip(ours, whole[name])]
                yield f"- {what}, Handover / {label}: **{spread(pairs, 2)}**"


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
        "| | seconds, median (min–max) | CPU seconds | blue | green | client | cores used | WAL | others' CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in by_name.items():
        def col(key, digits=1, rounds=rounds):
            return f"{median(r[key] for r in rounds):.{digits}f}"
        cpu = spread([work(r) for r in rounds])
        cores = median(work(r) / r["seconds"] for r in rounds)
        lines.append(
            f"| {cell(name)} | {spread([r['seconds'] for r in rounds])} | {cpu} | {col('blue_cpu')} | {col('green_cpu')} |"
            f" {col('client')} | {cores:.2f} | {mb(median(r['wal'] for r in rounds))} | {col('others')} |")
    for result in results:
        if result["lost"] is not None:
            lines.append(f"| {cell(result['name'])} | not timed: {cell(result['lost'])} | | | | | | | |")
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
    lines += ["", *ratios(by_name)]
    memory = [r["memory"] for r in by_name.get("handover", [])]
    if memory:
        lines.append(f"- Peak memory of the engine (`VmHWM`): {max(memory) / (1 << 20):.1f} MiB")
    if median(r["others"] / r["seconds"] for r in results) > 0.05 * os.cpu_count():
        lines += ["", "The machine was not quiet (see others' CPU): trust the CPU seconds. Each Postgres backend is a scheduling group"
                  " of its own there (`sched_autogroup`), so seconds favour who has most processes."]
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
