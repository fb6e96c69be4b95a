"""`python -m pycomm.info`: what `pycomm.info()` knows, for people."""

from __future__ import annotations

from pycomm.features import info


def _print() -> None:
    facts = info()
    print(f"pycomm {facts['pycomm']}, Python {facts['python']}, {facts['cores']} cores")
    print(f"MPI          {facts['mpi']}")
    print(f"             {facts['mpi_path']}")
    ulfm = "ULFM" if facts["mpi_ulfm"] else "no ULFM"
    print(f"             {ulfm}, {facts['mpi_thread_level'] or 'not started'}")
    print(f"kernels      {facts['isa']} (of {', '.join(facts['isas'])}; PYCOMM_ISA chooses)")
    for i, card in enumerate(facts["cuda"]["cards"]):
        versions = f"runtime {facts['cuda']['runtime']}, driver {facts['cuda']['driver']}"
        memory = f"{card['memory_bytes'] / 1e9:.0f} GB"
        print(
            f"{'cuda' if i == 0 else '':12} {i}: {card['name']}, {memory}, {card['capability']}, {versions}"
        )
    for kind in ("transports", "codecs"):
        for i, (name, row) in enumerate(facts[kind].items()):
            print(f"{kind if i == 0 else '':12} {name:22} {row['summary']}")
    for i, (name, row) in enumerate(facts["algorithms"].items()):
        notes = "".join(
            [
                " (needs mapped peers)" * row["mapped"],
                " (no lossy codecs)" * (not row["lossy_codecs"]),
                f" (adds in order {', '.join(row['orders'])})" if row["orders"] else "",
            ]
        )
        print(f"{'algorithms' if i == 0 else '':12} {name:32} {row['summary']}{notes}")
    print(f"tuned        {facts['tuned']}")
    for i, (name, why) in enumerate(facts["missing"].items()):
        print(f"{'missing' if i == 0 else '':12} {name:22} {why}")


if __name__ == "__main__":
    _print()
