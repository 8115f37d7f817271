"""The page's style sheet."""

STYLE = """
:root { --ink:#1c2430; --soft:#5d6b7e; --line:#e2e7ee; --paper:#fbfcfe; --blue:#2563a8; --green:#1c7f4f; --red:#b3392f; --amber:#a9780f }
* { box-sizing:border-box } body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1060px; margin:0 auto; padding:28px 24px 60px } h1 { font-size:26px; margin:0 0 6px } h2 { font-size:19px; margin:34px 0 8px }
.lead, section > p { color:var(--soft); max-width:78ch; margin:0 0 14px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(155px,1fr)); gap:12px; margin-top:20px }
.card { background:#fff; border:1px solid var(--line); border-top:4px solid var(--green); border-radius:8px; padding:12px 14px }
.card.bad { border-top-color:var(--red) } .card b { display:block; font-size:25px } .card span { display:block } .card small { color:var(--soft) }
.curves { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr)); gap:16px }
figure { margin:0; background:#fff; border:1px solid var(--line); border-radius:8px; padding:10px } figcaption { color:var(--soft); font-size:13px }
svg { width:100%; height:auto } svg text { font-size:11px; fill:var(--soft) } .grid { stroke:var(--line) }
polyline { fill:none; stroke:var(--blue); stroke-width:2 } polyline.raw { stroke-width:1; opacity:.28 }
section { overflow-x:auto } table { border-collapse:collapse; width:100%; background:#fff; border:1px solid var(--line); border-radius:8px }
th, td { text-align:left; padding:6px 10px; border-bottom:1px solid var(--line); font-variant-numeric:tabular-nums } th { color:var(--soft); font-weight:600 }
.bars { width:30% } .bars i { display:block; height:5px; margin:1px 0; border-radius:3px; background:var(--blue) }
.bars i.blind, .key.blind { background:#c98b2b } .bars i.majority, .key.majority { background:#a9b4c2 }
.key.score { background:var(--blue) } .key.good { background:var(--green) } .key.part { background:var(--amber) } .key.bad { background:var(--red) }
.key { display:inline-block; width:12px; height:12px; border-radius:3px; vertical-align:-1px }
.sheet { display:grid; grid-template-columns:repeat(auto-fill,minmax(225px,1fr)); gap:12px }
article { background:#fff; border:1px solid var(--line); border-left:4px solid var(--red); border-radius:8px; padding:10px 12px; font-size:13px; overflow-wrap:anywhere }
article.good { border-left-color:var(--green) } article.part { border-left-color:var(--amber) }
article header { display:flex; gap:6px; min-height:112px; align-items:center } article img { min-width:0; max-width:100%; max-height:112px; flex:0 1 auto }
article h3 { margin:6px 0 2px; font-size:12px; color:var(--soft); text-transform:uppercase; letter-spacing:.05em } article p { margin:3px 0 } article p span { color:var(--soft) }
.none { color:var(--soft) } pre { background:#fff; border:1px solid var(--line); border-radius:8px; padding:12px; overflow:auto; font-size:12px }
details { margin:6px 0 } summary { cursor:pointer }
"""
