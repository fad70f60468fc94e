"""Style and script of the page that shows what a model made of a text."""

from __future__ import annotations

# On the strongest, ink has a contrast of 4.5 at least, in light and in dark. The two strongest are underlined, too.
SHADES = (0.0, 0.09, 0.18, 0.27, 0.36, 0.45)

_MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
_SHADES = "\n".join(
    f".slm .t.s{number} {{ background: rgba(var(--heat), {alpha}); }}\n"
    f".slm .lens .p{len(SHADES) - 1 - number} {{ background: rgba(var(--sure), {alpha}); }}"
    for number, alpha in enumerate(SHADES)
)
STYLE = f"""
.slm p.text {{ font: .95rem/2 {_MONO}; max-width: none; overflow-wrap: anywhere; }}
.slm .t {{ font-family: {_MONO}; unicode-bidi: isolate; padding: .16em .05em; border-radius: .2em; color: var(--ink);
  border: 0 solid var(--accent); box-shadow: 0 0 0 1px var(--line); margin-right: 1px; }}
.slm .t.s4 {{ border-bottom-width: 2px; }}
.slm .t.s5 {{ border-bottom-width: 3px; }}
.slm .t.none {{ color: var(--soft); font-style: italic; }}
{_SHADES}
.slm .legend .t {{ padding: .16em .4em; margin-right: .3em; font-size: .82rem; white-space: nowrap; }}
.slm .legend {{ line-height: 2; }}
.slm .pair {{ white-space: nowrap; margin-right: .8em; }}
.slm .pair code {{ box-shadow: 0 0 0 1px var(--line); border-radius: .2em; padding: 0 .15em; }}
.slm .lens {{ font-size: .85rem; border-collapse: separate; border-spacing: 2px; }}
.slm .lens th, .slm .lens td {{ padding: .2rem .4rem; border: 0; white-space: nowrap; border-radius: .2rem; }}
.slm .lens th[scope="row"] {{ position: sticky; left: 0; background: var(--paper); font-weight: 600; }}
.slm .lens small {{ display: block; color: var(--ink); font-size: .75em; }}
.slm .lens b {{ text-decoration: underline; text-underline-offset: .15em; }}
.slm .maps {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(8.5rem, 22%), 1fr)); gap: .8rem; }}
.slm .maps figure {{ margin: 0; max-width: 14rem; }}
.slm .maps img {{ width: 100%; height: auto; aspect-ratio: 1; display: block; image-rendering: pixelated;
  border: 1px solid var(--line); background: none; }}
.slm .maps figcaption {{ font-size: .85rem; }}
.slm .maps small {{ display: block; color: var(--soft); }}
.slm .chooser label {{ margin-right: 1rem; }}
.slm .chooser select {{ font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: .3rem; padding: .2rem .3rem; }}
.slm .chooser button {{ font-size: inherit; line-height: inherit; cursor: pointer; background: none; }}
.slm .chooser button[aria-pressed="true"] {{ box-shadow: 0 0 0 2px var(--accent); }}
.slm .chooser .told {{ min-height: 3em; }}
"""

# The weights are read from the maps: the one piece of data in a picture, which our own writer made, is the square roots
# of the weights as bytes, each row behind a byte of its own.
SCRIPT = """
(() => {
  "use strict";
  const IDAT = 1081;  // where that piece begins: behind a signature, a header, a palette and its opacities
  const chooser = document.querySelector(".chooser");
  const [layer, head] = chooser.querySelectorAll("select");
  const tokens = [...chooser.querySelectorAll("button")];
  const told = chooser.querySelector(".told");
  const known = new Map();
  let weights = null, at = tokens.length - 1;

  async function weightsOf(image) {
    if (!known.has(image)) {
      const file = Uint8Array.from(atob(image.src.split(",")[1]), (c) => c.charCodeAt(0));
      const end = IDAT + 8 + new DataView(file.buffer).getUint32(IDAT);
      const stream = new Blob([file.slice(IDAT + 8, end)]).stream().pipeThrough(new DecompressionStream("deflate"));
      known.set(image, new Uint8Array(await new Response(stream).arrayBuffer()));
    }
    return known.get(image);
  }

  async function choose() {
    const of = (select, name) => (select.value ? `[data-${name}="${select.value}"]` : "");
    const images = [...document.querySelectorAll("img[data-head]" + of(layer, "layer") + of(head, "head"))];
    const all = await Promise.all(images.map(weightsOf));
    weights = (query, key) => {
      const place = query * (tokens.length + 1) + 1 + key;
      return all.reduce((sum, one) => sum + (one[place] / 255) ** 2, 0) / all.length;
    };
    show();
  }

  function show() {
    if (!weights) return;
    const shares = tokens.map((_, key) => (key <= at ? weights(at, key) : 0));
    const name = (key) => `\\u201c${tokens[key].textContent}\\u201d`;
    tokens.forEach((token, key) => {
      token.style.background = `rgba(var(--heat), ${0.45 * Math.sqrt(shares[key])})`;
      token.setAttribute("aria-pressed", String(key === at));
      token.tabIndex = key === at ? 0 : -1;
    });
    const most = shares.map((share, key) => [share, key]).filter(([share]) => share >= 0.005);
    most.sort((a, b) => b[0] - a[0]);
    const say = ([share, key]) => `${name(key)} (token ${key + 1}) ${Math.round(100 * share)} %`;
    const words = most.slice(0, 5).map(say);
    told.textContent = `Token ${at + 1}, ${name(at)}, looks at ${words.join(", ")}.`;
  }

  function go(to) {
    at = Math.max(0, Math.min(tokens.length - 1, to));
    show();
  }

  tokens.forEach((token, key) => {
    for (const event of ["mouseenter", "focus", "click"]) token.addEventListener(event, () => go(key));
    token.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) { go(at + step); tokens[at].focus(); event.preventDefault(); }
    });
  });
  for (const select of [layer, head]) select.addEventListener("change", choose);
  chooser.hidden = false;
  choose();
})();
"""
