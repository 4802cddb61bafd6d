//! A bar chart as SVG: one bar per proxy, with its value and the range of the rounds. The colours
//! follow the reader's light or dark mode.

use std::fmt::Write;

/// A bar, with the minimum and maximum of the rounds.
#[derive(Debug, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub spread: (f64, f64),
    /// Whether it is Tollgate's, which has another colour.
    pub ours: bool,
}

const WIDTH: f64 = 760.0;
/// The left edge of the bars, and the length of the longest.
const LEFT: f64 = 210.0;
const LENGTH: f64 = 430.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;

/// Draws the chart. `decimals` applies to the values at the bars' ends.
pub fn chart(title: &str, unit: &str, decimals: usize, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value.max(bar.spread.1)).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value.max(0.0) / most * LENGTH;
    let height = TOP + ROW * bars.len() as f64 + 14.0;
    let (title, unit) = (escape(title), escape(unit));
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{title}">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #1f2328 }}
.title {{ font-weight: 600 }}
.soft {{ fill: #59636e }}
.peer {{ fill: #8c959f }}
.ours {{ fill: #2da44e }}
.spread {{ stroke: #1f2328; stroke-width: 1.5 }}
@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3 }}
  .soft {{ fill: #9198a1 }}
  .peer {{ fill: #656c76 }}
  .ours {{ fill: #3fb950 }}
  .spread {{ stroke: #e6edf3 }}
}}
</style>
<text x="8" y="20" class="title">{title}</text>
<text x="{}" y="20" class="soft" text-anchor="end">{unit}; the line: all rounds</text>
"#,
        WIDTH - 8.0
    );
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let (middle, baseline) = (y + 9.0, y + 13.5);
        let (low, high) = (x(bar.spread.0), x(bar.spread.1));
        let (class, end) = (if bar.ours { "ours" } else { "peer" }, x(bar.value));
        let label = escape(&bar.label);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            r#"<text x="{}" y="{baseline:.1}" text-anchor="end">{label}</text>
<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="18" rx="2" class="{class}"/>
<path d="M{low:.1} {middle:.1}H{high:.1}" class="spread"/>
<text x="{:.1}" y="{baseline:.1}">{:.decimals$}</text>
"#,
            LEFT - 8.0,
            end - LEFT,
            end.max(high) + 8.0,
            bar.value,
        );
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        let bar = |label: &str, value, spread, ours| Bar { label: label.into(), value, spread, ours };
        let bars = [bar("a <b>", 10.0, (9.0, 20.0), false), bar("Tollgate", 5.0, (5.0, 5.0), true)];
        let svg = chart("T & U", "µs", 1, &bars);
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("T &amp; U") && svg.contains(">10.0<"));
        // The longest value of all has the full length, the others in proportion.
        assert!(svg.contains(&format!("H{:.1}", LEFT + LENGTH)), "{svg}");
        assert!(svg.contains(&format!(r#"width="{:.1}" height="18" rx="2" class="ours""#, LENGTH / 4.0)), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_to_show() {
        assert!(chart("t", "u", 0, &[]).ends_with("</svg>\n"));
    }
}
