"""Colours, spacing and the few marks of our own that the page has: light and dark, nothing loaded.

The palette is that of the comparison page (compare_style.py), so that what is saved from the page
looks like the page.
"""

from typing import Any

__all__ = ["HEAD", "STYLE", "make_theme"]

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]

# No request for an icon, and no word of us to the pages that links lead to.
HEAD = """
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cg fill='%230b7a75'%3E%3Crect x='0' y='2' width='4' height='12' rx='1'/%3E%3Crect x='12' y='2' width='4' height='12' rx='1'/%3E%3C/g%3E%3Crect x='6' y='2' width='4' height='12' rx='1' fill='%238fc3c0'/%3E%3C/svg%3E">
<meta name="referrer" content="no-referrer">
<script>
  // A frame of ours says how tall its page is.
  addEventListener("message", (event) => {
    for (const frame of document.querySelectorAll("iframe.frame"))
      if (event.source === frame.contentWindow && event.data.height > 0)
        frame.style.height = Math.min(event.data.height + 2, 20000) + "px";
  });
</script>
"""  # noqa: E501

STYLE = """
:root { --sk-back: #f7f6f3; --sk-card: #fff; --sk-ink: #1d1f24; --sk-soft: #5c6068;
  --sk-line: #e3e1db; --sk-plugin: #0b7a75; --sk-fewer: #a85d07; --sk-skip: #e4e2dc;
  --sk-part: #8fc3c0; --sk-on: #fff; }
.dark { --sk-back: #131418; --sk-card: #1c1e24; --sk-ink: #eceae5; --sk-soft: #a6aab3;
  --sk-line: #31343c; --sk-plugin: #45c2bb; --sk-fewer: #f0a850; --sk-skip: #363a43;
  --sk-part: #2b7772; --sk-on: #131418; }
.gradio-container, .gradio-container > main { width: 100%; }
.gradio-container { max-width: 1320px !important; margin: 0 auto; color: var(--sk-ink); }
.head { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; }
.head h1 { font-size: 25px; letter-spacing: -.02em; margin: 0; color: var(--sk-ink); }
.head p { margin: 0; color: var(--sk-soft); }
.html-container, .block.padded:has(> .html-container) { padding: 0 !important; }
h2 { font-size: 18px; letter-spacing: -.01em; margin: 12px 0 0; color: var(--sk-ink); }
.soft { color: var(--sk-soft); margin: 6px 0; font-size: 14px; }
.unseen { position: absolute; left: -9999px; }
.live { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.tile { position: relative; margin: 0; aspect-ratio: 1; border: 1px solid var(--sk-line);
  border-radius: 12px; overflow: hidden; background: var(--sk-card); }
.tile img { width: 100%; height: 100%; object-fit: contain; display: block; }
.tile .blank { position: absolute; inset: 0; background:
  repeating-linear-gradient(90deg, var(--sk-skip) 0 14px, transparent 14px 28px); opacity: .45; }
.tile figcaption { position: absolute; left: 10px; bottom: 10px; font-size: 12px; padding: 1px 8px;
  border-radius: 7px; color: #fff; background: rgba(20, 20, 24, .66); }
.tile[data-busy] { border-color: var(--sk-plugin); }
.bar { height: 6px; border-radius: 3px; background: var(--sk-skip); margin-top: 12px;
  overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--sk-plugin); transition: width .2s; }
.steps { display: flex; gap: 3px; }
.steps i { flex: 1; min-width: 0; height: 30px; border-radius: 4px; background: var(--sk-skip);
  color: var(--sk-soft); font: 500 11px/30px system-ui, sans-serif; text-align: center;
  overflow: hidden; font-style: normal; }
.steps .c { background: var(--sk-plugin); color: var(--sk-on); }
.steps .p { background: var(--sk-part); color: var(--sk-ink); }
.steps:has(> i:nth-child(33)) i { color: transparent; }
.legend { display: flex; gap: 18px; margin-top: 8px; font-size: 13px; color: var(--sk-soft); }
.legend span { display: flex; align-items: center; gap: 6px; }
.legend i { width: 12px; height: 12px; border-radius: 3px; background: var(--sk-skip); }
.legend .c { background: var(--sk-plugin); } .legend .p { background: var(--sk-part); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(98px, 1fr)); gap: 8px;
  margin: 0; }
.figures > div { background: var(--sk-card); border: 1px solid var(--sk-line); border-radius: 12px;
  padding: 9px 10px; display: flex; flex-direction: column; }
.figures dt { color: var(--sk-soft); font-size: 13px; }
.figures dd { margin: 0; font-size: 19px; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--sk-ink); }
.figures small { color: var(--sk-soft); font-size: 11.5px; line-height: 1.35; }
.verdict { border-left: 3px solid var(--sk-plugin); padding: 2px 0 2px 14px; margin: 4px 0;
  color: var(--sk-ink); font-size: 15px; line-height: 1.5; }
.wide { overflow-x: auto; background: var(--sk-card); border: 1px solid var(--sk-line);
  border-radius: 12px; }
.wide table { border: 0; border-collapse: collapse; width: 100%; font-size: 14px; margin: 0;
  font-variant-numeric: tabular-nums; }
.wide th, .wide td { padding: 9px 12px; text-align: left; border: 0;
  border-top: 1px solid var(--sk-line); color: var(--sk-ink); vertical-align: top; }
.wide thead th { color: var(--sk-soft); font-weight: 500; border-top: 0; background: none; }
.wide thead, .wide tr { border: 0; background: none; }
.wide tbody th { font: 600 13px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; }
.wide tr.no th, .wide tr.no td { color: var(--sk-soft); }
#plugin-table tr.yes td:nth-child(3) { color: var(--sk-plugin); font-weight: 600; }
.wide .number { text-align: right; white-space: nowrap; }
#plugin-table .wide { max-height: 560px; overflow-y: auto; }
#plugin-table thead th { position: sticky; top: 0; background: var(--sk-card);
  box-shadow: 0 1px var(--sk-line); }
.chart { background: var(--sk-card); border: 1px solid var(--sk-line); border-radius: 12px;
  padding: 14px; overflow-x: auto; }
.chart svg { display: block; width: 100%; min-width: 560px; height: auto; }
.chart text { fill: var(--sk-soft); font: 13px system-ui, "DejaVu Sans", sans-serif; }
.chart .axis { stroke: var(--sk-line); stroke-width: 1; }
.chart .dot { fill: var(--sk-plugin); } .chart .fewer { fill: var(--sk-fewer); }
.chart .front { fill: none; stroke: var(--sk-plugin); stroke-width: 1.5; opacity: .6; }
.chart .best { fill: none; stroke: var(--sk-ink); stroke-width: 2; }
.chart .name { fill: var(--sk-ink); paint-order: stroke; stroke: var(--sk-card); stroke-width: 4px; }
.sheet { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.sheet figure { margin: 0; }
.sheet img { width: 100%; border-radius: 10px; border: 1px solid var(--sk-line); display: block; }
.sheet figcaption { font-size: 13px; line-height: 1.4; margin-top: 6px; color: var(--sk-soft);
  overflow-wrap: anywhere; }
.sheet figcaption b { color: var(--sk-ink); display: block; font-weight: 600; }
.scene { display: flex; gap: 12px; align-items: center; }
.viewer { flex: 1; min-width: 0; height: 460px; border: 1px solid var(--sk-line); margin: 0;
  border-radius: 12px; background: #fff; }
.outlook { display: grid; place-items: center; min-height: 220px; margin: 0; padding: 24px 15%;
  border: 1px dashed var(--sk-line); border-radius: 12px; color: var(--sk-soft); font-size: 14px;
  text-align: center; text-wrap: balance; }
#scene .outlook { min-height: 460px; }
.scene .beside { display: flex; flex-direction: column; gap: 12px; }
.scene figure { margin: 0; width: 192px; }
.scene figure img { width: 100%; display: block; border: 1px solid var(--sk-line);
  border-radius: 12px; }
.scene figcaption { font-size: 12px; color: var(--sk-soft); margin-top: 4px; }
@media (max-width: 700px) { .scene { flex-direction: column; align-items: stretch; }
  .scene .beside { flex-direction: row; } }
.frame { width: 100%; height: 1200px; border: 0; background: var(--sk-back); }
/* gradio makes a field of two lines 63 pixels high: three of these fit, none is cut. */
.code textarea, #compare-recipes textarea { font: 13px/17px ui-monospace, Menlo, "DejaVu Sans Mono", monospace;
  padding-block: 10px; }
/* The knob is white; without a rim it would look like a gap in the track. */
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--sk-plugin); }
input[type=range]::-moz-range-thumb { border: 2px solid var(--sk-plugin); }
.dark input[type=range] { --neutral-200: var(--sk-skip); }
#reload .wrap, #photos .wrap, #batch-file .wrap { font-size: 14px; line-height: 1.4; }
.ends { display: flex; justify-content: space-between; font-size: 13px; color: var(--sk-soft); }
:is(#gallery, #batch-pictures) .grid-wrap { min-height: 0; max-height: none; padding-top: 26px; }
#photos .grid-wrap { padding-top: 26px; }
:is(#gallery, #batch-pictures) .grid-container { grid-template-columns: repeat(auto-fill, 112px) !important;
  grid-auto-rows: 112px; height: auto; }
:is(#gallery, #batch-pictures) .thumbnail-item { width: 112px; height: 112px; aspect-ratio: 1; }
#gallery .caption-label { font-size: 11px; max-width: 100%; }
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible,
a:focus-visible { outline: 2px solid var(--sk-plugin) !important; outline-offset: 2px; }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""  # noqa: E501


def make_theme(gradio: Any) -> Any:
    """Return gradio's plain theme in our colours; its own themes would load fonts."""
    teal = gradio.themes.Color(
        "#eef7f6",
        "#d6ebe9",
        "#aed7d4",
        "#7fbfbb",
        "#45c2bb",
        "#14938d",
        "#0b7a75",
        "#09645f",
        "#084f4c",
        "#073f3d",
        "#052a29",
    )
    theme = gradio.themes.Base(
        primary_hue=teal,
        neutral_hue="stone",
        radius_size="lg",
        font=FONTS,
        font_mono=MONO,
    )
    names = ("back", "card", "ink", "soft", "pill")
    light = dict(zip(names, ("#f7f6f3", "#ffffff", "#1d1f24", "#5c6068", "#eceae5"), strict=True))
    dark = dict(zip(names, ("#131418", "#1c1e24", "#eceae5", "#a6aab3", "#2a2d35"), strict=True))
    colours: dict[str, str] = {}
    for end, palette, line in (("", light, "#e3e1db"), ("_dark", dark, "#31343c")):
        colours |= {
            f"body_background_fill{end}": palette["back"],
            f"background_fill_primary{end}": palette["card"],
            f"background_fill_secondary{end}": palette["back"],
            f"block_background_fill{end}": palette["card"],
            f"block_border_color{end}": line,
            f"border_color_primary{end}": line,
            f"body_text_color{end}": palette["ink"],
            f"body_text_color_subdued{end}": palette["soft"],
            f"block_label_text_color{end}": palette["soft"],
            f"block_title_text_color{end}": palette["ink"],
            f"block_info_text_color{end}": palette["soft"],
            f"input_background_fill{end}": palette["card"],
            f"input_border_color{end}": line,
            f"checkbox_label_background_fill{end}": palette["pill"],
            f"checkbox_label_background_fill_hover{end}": line,
            f"checkbox_label_background_fill_selected{end}": palette["pill"],
            f"button_secondary_background_fill{end}": palette["pill"],
            f"button_secondary_background_fill_hover{end}": line,
            f"table_even_background_fill{end}": palette["card"],
            f"table_odd_background_fill{end}": palette["back"],
        }
    return theme.set(
        **colours,
        button_primary_background_fill="#0b7a75",
        button_primary_background_fill_hover="#09645f",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#45c2bb",
        button_primary_background_fill_hover_dark="#7fd9d3",
        button_primary_text_color_dark="#10201f",
        input_border_width="1px",
        input_border_width_dark="1px",
        link_text_color="#0b7a75",
        link_text_color_hover="#09645f",
        link_text_color_dark="#45c2bb",
        link_text_color_hover_dark="#7fd9d3",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
    )
