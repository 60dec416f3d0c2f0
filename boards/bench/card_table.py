"""A table of what boards/bench/card.sh measured: every figure with its target and verdict, then our rates beside the peers'.

    python3 boards/bench/card_table.py OUT

Exits with 1 where a model computes something else than on the CPU; a figure that misses its target is only said.
"""

import json
import pathlib
import sys

COMPUTED = ("divergence from the CPU", "other greedy token")


def main():
    out = pathlib.Path(sys.argv[1])
    reports = {path.stem.removeprefix("bench-"): json.loads(path.read_text("utf-8")) for path in sorted(out.glob("bench-*.json"))}
    if not reports:
        sys.exit(f"error: there is no bench-*.json in {out}")
    wrong = False
    for name, report in reports.items():
        note = ", QUICK: figures mean nothing" if report["quick"] else ""
        print(f"\n{name} on {report['device']}, weights {report['weights']} ({report['weights_reason']}){note}")
        for check in report["checks"]:
            computed = check["what"].startswith(COMPUTED)
            verdict = {True: "met", False: "MISSED", None: "not measured"}[check["met"]]
            if report["quick"] and not computed:
                verdict = "not judged"
            value = "-" if check["value"] is None else f"{check['value']:.6g}"
            print(f"  {check['what']:<62}{value:>14}  {check['side']} {check['target']:<9g}{verdict}")
            wrong |= computed and check["met"] is not True
    peers = out / "peers.json"
    found = json.loads(peers.read_text("utf-8")) if peers.exists() else {}
    print("\ntokens/s: prefill of 576, one sequence, 8 together; ours over the peer's")
    for peer, answer in found.items():
        if "why" in answer:
            print(f"  {peer}: not measured, {answer['why']}")
        for shape, theirs in answer.get("models", {}).items():
            ours = reports.get(shape)
            mine = ours and {
                "prefill_576": ours["prefill"].get("576", {}).get("tokens_per_s"),
                "decode": ours["decode"]["tokens_per_s"],
                "decode_8": ours["batch"].get("8", {}).get("tokens_per_s"),
            }
            for what, rate in theirs.items():
                if isinstance(rate, str):
                    print(f"  {peer} {shape} {what}: {rate}")
                    continue
                beside = mine and mine.get(what)
                print(f"  {peer} {shape} {what:<12}{rate:>12.1f}" + (f"{beside:>12.1f}{beside / rate:>8.2f}" if beside else ""))
    sys.exit(1 if wrong else 0)


main()
