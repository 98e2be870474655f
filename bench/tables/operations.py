"""Tables of the operations of pscl_kernels on a CPU."""

from __future__ import annotations

from bench.tables.common import load, origin, table


def kernels(name: str, form: str = "chunked") -> str:
    """Time and memory of an operation on a CPU, each form beside ours."""
    content = load(name)
    measured = content["result"]["measured"]
    ours = measured[form]
    rows = [
        [
            label.replace("_", " "),
            f"{1e3 * found['median_seconds']:,.0f}",
            f"{found['peak_bytes'] / 1e6:,.1f}",
            f"{ours['median_seconds'] / found['median_seconds']:.3f}",
            f"{ours['peak_bytes'] / found['peak_bytes']:.4f}",
        ]
        for label, found in measured.items()
    ]
    shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in content["result"]["shape"].items())
    head = ["form", "median, ms of CPU time", "peak memory, MB", f"{form} / it, time", f"{form} / it, memory"]
    return f"{shape}:\n\n" + table(head, rows) + origin(name, content)


def peers(name: str) -> str:
    """Both losses beside what others offer, on a CPU, fastest first."""
    content = load(name)
    result = content["result"]
    rows = [
        [
            task,
            peer,
            f"{1e3 * found['median_seconds']:,.0f}",
            f"{found['peak_bytes'] / 1e6:,.1f}",
            f"{found['time_ratio']:.3f}",
            f"{found['memory_ratio']:.4f}",
            found.get("differs", ""),
        ]
        for label, found in sorted(
            result["measured"].items(),
            key=lambda pair: (pair[0].partition(", ")[0], pair[1]["median_seconds"]),
        )
        for task, _, peer in [label.partition(", ")]
    ]
    shape = ", ".join(f"{key} {value}" for key, value in result["shape"].items())
    head = ["task", "implementation", "median, ms of CPU time", "peak memory, MB", "chunked / it, time"]
    head += ["chunked / it, memory", "what it does differently"]
    return f"{shape}:\n\n" + table(head, rows) + origin(name, content)
