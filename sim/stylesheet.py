"""How a report looks: on paper, on a light and on a dark screen, without anything from elsewhere."""

from typing import Final

STYLE: Final = """\
:root { --ink: #1c1e21; --paper: #ffffff; --faint: #dfe2e6; --soft: #f5f6f8; --good: #0a6b45; --bad: #a61b1b; --warn: #7a5300; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --faint: #3a3d42; --soft: #1f2226; --good: #4fd6a0; --bad: #ff8a80; --warn: #f0c060; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--faint); padding-bottom: .25rem; }
p { max-width: 46rem; }
.lead { font-size: 1.05rem; }
.good strong:first-child { color: var(--good); }
.bad strong:first-child, ul.bad, strong.bad { color: var(--bad); }
ul.warn { color: var(--warn); }
.model { opacity: .65; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { font-weight: 600; background: var(--soft); vertical-align: bottom; }
.t { text-align: left; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
.dense { font-size: .8rem; }
.dense th, .dense td { padding: .3rem .4rem; }
figure { margin: 1.2rem 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; opacity: .8; }
pre { background: var(--soft); border: 1px solid var(--faint); padding: .6rem .8rem; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
}
"""
