//! The report as one HTML page: tables, and plots as inline SVG. The page is self-contained, so that
//! it can be stored with a build's results, or mailed.

use std::fmt::{self, Write};

use hdrhistogram::Histogram;

use super::{
    args::is_secret,
    progress::Sample,
    report::{Report, micros},
};
use crate::observe::access_log::timestamp;

/// The size of a plot.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
/// The margins around a plot for its labels.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// The names of the two latencies, as in the text report.
const CORRECTED: &str = "corrected";
const SERVICE: &str = "service time";

/// Colours that work on a light and on a dark page.
const STYLE: &str = "
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #667; --grid: #e3e6ea;
        --a: #1f6feb; --b: #d9730d; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #0f1216; --fg: #e6e9ed; --dim: #98a2ae; --grid: #2a3038; --a: #58a6ff; --b: #f0a35e; --bad: #ff6b6b; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
       max-width: 780px; padding: 0 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
code { font-size: .9em; } @media (max-width: 520px) { td.n, th.n { padding-right: .35rem; font-size: .8rem; } }
th { font-weight: 600; } p.warning { border-left: 3px solid var(--bad); padding-left: .7rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
.grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .bad { stroke: var(--bad); }
.key { color: var(--dim); font-size: .9rem; } .key svg { width: 1.4em; height: .7em; margin: 0 .3em 0 1em; }
";

/// The scale of the vertical axis.
enum Scale {
    /// From 0 to this value.
    Linear(f64),
    /// From ten to the power of the first number to ten to the power of the second.
    Log(i32, i32),
}

struct Line<'a> {
    name: &'a str,
    /// The CSS class.
    class: &'a str,
    /// Points in the units of the axes; `None` is a gap in the line.
    points: Vec<(f64, Option<f64>)>,
}

struct Plot<'a> {
    title: &'a str,
    x_label: &'a str,
    /// The right end of the horizontal axis, which begins at 0.
    x_max: f64,
    x_ticks: Vec<(f64, String)>,
    scale: Scale,
    y_text: fn(f64) -> String,
    lines: Vec<Line<'a>>,
}

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut out, report);
    out
}

fn write_page(out: &mut String, report: &Report) -> fmt::Result {
    let (plan, stats) = (&*report.plan, &report.stats);
    let heading = escape(&format!("{} {}", plan.request.method(), plan.url));
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{heading}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>{heading}</h1>\n"
    )?;
    for warning in report.warnings() {
        writeln!(out, "<p class=\"warning\">{}</p>", escape(&warning))?;
    }
    let offered = report.offered().map_or("as much as possible (closed loop)".into(), |r| format!("{r} requests/s"));
    writeln!(out, "<table>")?;
    let classes = report.classes().filter(|(_, n)| *n > 0).map(|(class, n)| format!("{class}: {n}"));
    let classes = classes.collect::<Vec<_>>().join(", ");
    let headers =
        plan.shown_headers().map(|(name, value)| format!("<code>{}</code>", escape(&format!("{name}: {value}"))));
    for (name, value) in [
        ("Date", timestamp::text(report.started)),
        ("Command", format!("<code>{}</code>", escape(&command(std::env::args())))),
        ("Headers", headers.collect::<Vec<_>>().join("<br>")),
        ("Offered", offered),
        ("Achieved", format!("{:.1} responses/s", report.achieved())),
        ("Throughput", report.throughput()),
        ("Requests", format!("{} in {:.2} s", stats.requests, report.elapsed.as_secs_f64())),
        ("Status", if classes.is_empty() { "none".into() } else { classes }),
        ("Errors", report.failed().to_string()),
        ("Connections", format!("{} over {} thread(s)", plan.connections, plan.threads)),
    ] {
        writeln!(out, "<tr><th>{name}</th><td>{value}</td></tr>")?;
    }
    writeln!(out, "</table>")?;

    let latency = report.offered().map(|_| &stats.latency);
    writeln!(out, "<table>\n<tr><th></th>")?;
    let columns = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
    columns.iter().try_for_each(|(name, _)| write!(out, "<th class=\"n\">{name}</th>"))?;
    writeln!(out, "</tr>")?;
    for (name, h) in latency.map(|h| (CORRECTED, h)).into_iter().chain([(SERVICE, &stats.service)]) {
        write!(out, "<tr><th>{name}</th>")?;
        for (_, q) in columns {
            write!(out, "<td class=\"n\">{}</td>", micros(h.value_at_quantile(q)))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table>")?;
    if report.failed() > 0 {
        writeln!(out, "<h2>Errors</h2>\n<table>")?;
        for (kind, n, first) in report.failures().filter(|(_, n, _)| *n > 0) {
            let first = escape(first.unwrap_or_default());
            writeln!(out, "<tr><th>{kind}</th><td class=\"n\">{n}</td><td>{first}</td></tr>")?;
        }
        writeln!(out, "</table>")?;
    }
    if let Some(name) = &plan.tally {
        writeln!(out, "<h2>Header {}</h2>\n<table>", escape(name.as_str()))?;
        for (value, n) in report.tally() {
            writeln!(out, "<tr><td>{}</td><td class=\"n\">{n}</td></tr>", escape(&value))?;
        }
        writeln!(out, "</table>")?;
    }
    for plot in plots(report) {
        plot.write(out)?;
    }
    writeln!(out, "</body>\n</html>")
}

fn plots(report: &Report) -> [Plot<'_>; 3] {
    let stats = &report.stats;
    let mut curves = vec![Line { name: SERVICE, class: "b", points: percentiles(&stats.service) }];
    if report.offered().is_some() {
        curves.insert(0, Line { name: CORRECTED, class: "a", points: percentiles(&stats.latency) });
    }
    let nines = curves.iter().flat_map(|c| c.points.last()).map(|p| p.0).fold(1.0, f64::max);
    let names = ["0%", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%", "99.99999%"];
    let seconds = report.series.last().map_or(1.0, |s| s.at.as_secs_f64()).max(1e-3);
    let series = |name, class, value: &dyn Fn(&Sample) -> Option<f64>| Line {
        name,
        class,
        points: report.series.iter().map(|s| (s.at.as_secs_f64(), value(s))).collect(),
    };
    let rates = vec![
        series("requests per second", "a", &|s| Some(s.rate())),
        series("errors per second", "bad", &|s| Some(s.failure_rate())),
    ];
    let latencies = vec![
        series("p50", "a", &|s| s.p50_us.map(|us| us as f64)),
        series("p99", "b", &|s| s.p99_us.map(|us| us as f64)),
    ];
    let step = nice_step(seconds);
    let time_ticks: Vec<_> = (0..)
        .map(|i| f64::from(i) * step)
        .take_while(|t| *t <= seconds * 1.001)
        .map(|t| (t, format!("{}s", number(t))))
        .collect();
    let top = rates.iter().flat_map(|l| &l.points).filter_map(|p| p.1).fold(0.0, f64::max).max(1.0);
    let step = nice_step(top);
    [
        Plot {
            title: "Latency by percentile",
            x_label: "percentile",
            x_max: nines,
            x_ticks: (0..).map(f64::from).zip(names.map(String::from)).take_while(|(x, _)| *x <= nines).collect(),
            scale: log_scale(&curves),
            y_text: power_of_ten,
            lines: curves,
        },
        Plot {
            title: "Throughput and errors",
            x_label: "time",
            x_max: seconds,
            x_ticks: time_ticks.clone(),
            scale: Scale::Linear((top / step).ceil() * step),
            y_text: number,
            lines: rates,
        },
        Plot {
            title: "Latency over time",
            x_label: "time",
            x_max: seconds,
            x_ticks: time_ticks,
            scale: log_scale(&latencies),
            y_text: power_of_ten,
            lines: latencies,
        },
    ]
}

/// The curve of a histogram. Its horizontal axis counts nines: 1 is 90%, 2 is 99%, as far as there are enough values to
/// distinguish the percentile from the maximum.
fn percentiles(h: &Histogram<u64>) -> Vec<(f64, Option<f64>)> {
    let last = (h.len().max(1) as f64).log10().clamp(1.0, 7.0);
    let steps = (last * 40.0).ceil() as u32;
    let at = |i| last * f64::from(i) / f64::from(steps);
    let value = |i| (!h.is_empty()).then(|| h.value_at_quantile(1.0 - 10f64.powf(-at(i))) as f64);
    (0..=steps).map(|i| (at(i), value(i))).collect()
}

fn log_scale(lines: &[Line<'_>]) -> Scale {
    let values = || lines.iter().flat_map(|l| &l.points).filter_map(|p| p.1).map(|v| v.max(1.0));
    let low = values().fold(f64::MAX, f64::min).log10().floor() as i32;
    let high = values().fold(1.0, f64::max).log10().ceil() as i32;
    // Without values, the minimum is far above the maximum.
    let low = low.min(high - 1).max(0);
    Scale::Log(low, high.max(low + 1))
}

/// A round distance between ticks, such that about five fit.
fn nice_step(max: f64) -> f64 {
    let rough = max / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough)
}

/// Formats a number without insignificant digits.
fn number(v: f64) -> String {
    let v = (v * 1000.0).round() / 1000.0;
    if v >= 10_000.0 { format!("{}k", v / 1000.0) } else { v.to_string() }
}

/// A tick of a logarithmic axis of microseconds.
fn power_of_ten(us: f64) -> String {
    match us {
        ..1e3 => format!("{us}µs"),
        ..1e6 => format!("{}ms", us / 1e3),
        _ => format!("{}s", us / 1e6),
    }
}

/// The command line in shell syntax, without the values of credentials in headers.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut words: Vec<String> = Vec::new();
    for argument in arguments {
        let after_flag = words.last().is_some_and(|last| last == "-H" || last == "--header");
        let header = match after_flag {
            true => Some(("", argument.as_str())),
            false => ["--header=", "-H"].into_iter().find_map(|flag| Some((flag, argument.strip_prefix(flag)?))),
        };
        let shown = match header.and_then(|(flag, header)| Some((flag, header.split_once(':')?.0))) {
            Some((flag, name)) if is_secret(name) => format!("{flag}{name}: …"),
            _ => argument,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:@%+,".contains(c);
        words.push(match !shown.is_empty() && shown.chars().all(plain) {
            true => shown,
            false => format!("'{}'", shown.replace('\'', r"'\''")),
        });
    }
    words.join(" ")
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Plot<'_> {
    fn x(&self, v: f64) -> f64 {
        LEFT + v / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, v: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear(max) => v / max,
            Scale::Log(low, high) => (v.max(1.0).log10() - f64::from(low)) / f64::from(high - low),
        };
        HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn y_ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear(max) => {
                let step = nice_step(max);
                (0..=(max / step).round() as u32).map(|i| f64::from(i) * step).collect()
            }
            Scale::Log(low, high) => (low..=high).map(|p| 10f64.powi(p)).collect(),
        }
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "<h2>{}</h2>\n<div class=\"key\">", self.title)?;
        for line in &self.lines {
            let (class, name) = (line.class, line.name);
            writeln!(out, "<svg viewBox=\"0 0 20 10\"><path class=\"line {class}\" d=\"M0 5H20\"/></svg>{name}")?;
        }
        writeln!(out, "</div>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", self.title)?;
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for v in self.y_ticks() {
            let (y, text) = (self.y(v), (self.y_text)(v));
            writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>")?;
            writeln!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 8.0, y + 4.0)?;
        }
        for (v, text) in &self.x_ticks {
            let x = self.x(*v);
            writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>")?;
            writeln!(out, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", bottom + 16.0)?;
        }
        let middle = (LEFT + right) / 2.0;
        writeln!(out, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>", HEIGHT - 6.0, self.x_label)?;
        for line in &self.lines {
            for part in line.points.split(|(_, y)| y.is_none()).filter(|part| !part.is_empty()) {
                let mut points: Vec<_> =
                    part.iter().filter_map(|(x, y)| y.map(|y| format!("{:.1},{:.1}", self.x(*x), self.y(y)))).collect();
                if let [point] = &points[..] {
                    // A line from a point to itself is drawn as a dot, because of its round ends.
                    points.push(point.clone());
                }
                writeln!(out, "<polyline class=\"line {}\" points=\"{}\"/>", line.class, points.join(" "))?;
            }
        }
        writeln!(out, "</svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_shown_without_secrets() {
        let shown = |line: &[&str]| command(line.iter().map(|word| (*word).to_owned()));
        assert_eq!(
            shown(&[
                "tollgate",
                "bench",
                "load",
                "http://a/?b",
                "-H",
                "X-Api-Key: abc",
                "--header=Cookie: a=b",
                "-HAccept: */*"
            ]),
            "tollgate bench load 'http://a/?b' -H 'X-Api-Key: …' '--header=Cookie: …' '-HAccept: */*'"
        );
        assert_eq!(shown(&["a", "", "it's"]), r"a '' 'it'\''s'");
    }
}
