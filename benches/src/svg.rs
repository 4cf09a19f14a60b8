//! Pictures: bars, curves and time lines as SVG, with text that stands by itself.
//!
//! A picture is a grid of panels; all text is escaped. Every store has its own colour in all pictures.

use std::fmt::Write;

/// Size of a panel in pixels, its margins included.
const PANEL: (f64, f64) = (380.0, 210.0);

/// Room for a panel's title, and for the labels left of and below it.
const MARGIN: (f64, f64, f64) = (34.0, 78.0, 30.0);

/// Panels beside each other.
const COLUMNS: usize = 3;

/// Room for title and legend above the panels.
const HEAD: f64 = 64.0;

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// The store.
    pub name: String,
    /// Points: x from 0 to 1, y in the chart's unit.
    pub points: Vec<(f64, f64)>,
}

/// A chart in a grid.
#[derive(Clone, Debug)]
pub enum Panel {
    /// A bar for each store; longer is better. Each has a label, a length, and the text beside it.
    Bars {
        /// Above it.
        title: String,
        /// Store, value, and how the value is written.
        bars: Vec<(String, f64, String)>,
    },
    /// Lines over a logarithmic axis.
    Lines {
        /// Above it.
        title: String,
        /// Marks of the x axis: place from 0 to 1, and text.
        marks: Vec<(f64, String)>,
        /// The lines.
        series: Vec<Series>,
    },
}

/// The colour of a store.
fn colour(name: &str) -> &'static str {
    match name {
        "esker" => "#d62728",
        "fjall" => "#1f77b4",
        "redb" => "#9467bd",
        "lmdb" => "#2ca02c",
        "surrealkv" => "#e377c2",
        "rocksdb" => "#ff7f0e",
        "canopydb" => "#17becf",
        _ => "#7f7f7f",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws panels below a title and a line that says how to read them.
pub fn draw(title: &str, explanation: &str, panels: &[Panel]) -> String {
    let columns = panels.len().clamp(1, COLUMNS);
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (PANEL.0 * count(columns), HEAD + PANEL.1 * count(rows) + 10.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, (14.0, 24.0), "font-size=\"17\" font-weight=\"bold\"", title);
    text(&mut svg, (14.0, 42.0), "fill=\"#555555\"", explanation);
    legend(&mut svg, panels);
    for (at, panel) in panels.iter().enumerate() {
        let (left, top) = (PANEL.0 * count(at % columns), HEAD + PANEL.1 * count(at / columns));
        match panel {
            Panel::Bars { title, bars } => draw_bars(&mut svg, (left, top), title, bars),
            Panel::Lines { title, marks, series } => {
                let axes = Axes::over(series, (left, top));
                draw_lines(&mut svg, &axes, title, (marks, series));
            }
        }
    }
    svg + "</svg>\n"
}

#[expect(clippy::cast_precision_loss, reason = "panels are few")]
fn count(number: usize) -> f64 {
    number as f64
}

/// Writing to a string cannot fail.
fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(what);
}

fn text(svg: &mut String, (x, y): (f64, f64), style: &str, what: &str) {
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>\n", escape(what)));
}

/// Names the colours of lines; bars carry their names themselves.
fn legend(svg: &mut String, panels: &[Panel]) {
    let mut names: Vec<&str> = Vec::new();
    for panel in panels {
        let Panel::Lines { series, .. } = panel else { continue };
        for series in series {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
            }
        }
    }
    let mut x = 14.0;
    for name in names {
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"50\" width=\"14\" height=\"4\" fill=\"{}\"/>\n",
                colour(name)
            ),
        );
        text(svg, (x + 18.0, 56.0), "", name);
        x += 90.0;
    }
}

fn draw_bars(svg: &mut String, (left, top): (f64, f64), title: &str, bars: &[(String, f64, String)]) {
    text(svg, (left + 14.0, top + 24.0), "font-weight=\"bold\" font-size=\"12\"", title);
    let longest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    let room = PANEL.0 - MARGIN.1 - 74.0;
    let step = ((PANEL.1 - MARGIN.0 - 10.0) / count(bars.len().max(1))).min(24.0);
    for (at, (name, value, label)) in bars.iter().enumerate() {
        let y = top + MARGIN.0 + step * count(at);
        let width = room * value / longest;
        let x = left + MARGIN.1;
        text(svg, (x - 6.0, y + step * 0.65), "text-anchor=\"end\"", name);
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"/>\n",
                step * 0.8,
                colour(name)
            ),
        );
        text(svg, (x + width + 5.0, y + step * 0.65), "", label);
    }
}

/// Where values stand in a panel: the y axis is logarithmic and goes from power of ten to power of ten.
struct Axes {
    left: f64,
    top: f64,
    low: f64,
    high: f64,
}

impl Axes {
    const WIDTH: f64 = PANEL.0 - MARGIN.1 - 16.0;
    const HEIGHT: f64 = PANEL.1 - MARGIN.0 - MARGIN.2;

    fn over(series: &[Series], (left, top): (f64, f64)) -> Axes {
        let values =
            series.iter().flat_map(|series| &series.points).map(|point| point.1).filter(|y| *y > 0.0);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let low = low.log10().floor();
        Axes { left: left + MARGIN.1, top: top + MARGIN.0, low, high: high.log10().ceil().max(low + 1.0) }
    }

    fn x(&self, part: f64) -> f64 {
        self.left + Axes::WIDTH * part
    }

    fn y(&self, value: f64) -> f64 {
        let power = value.max(f64::MIN_POSITIVE).log10().clamp(self.low, self.high);
        self.top + Axes::HEIGHT * (self.high - power) / (self.high - self.low)
    }
}

fn draw_lines(svg: &mut String, axes: &Axes, title: &str, (marks, lines): (&[(f64, String)], &[Series])) {
    text(svg, (axes.left - MARGIN.1 + 14.0, axes.top - 10.0), "font-weight=\"bold\" font-size=\"12\"", title);
    let mut power = axes.low;
    while power <= axes.high {
        let y = axes.y(10_f64.powf(power));
        grid(svg, (axes.left, y), (axes.left + Axes::WIDTH, y));
        text(svg, (axes.left - 6.0, y + 4.0), "text-anchor=\"end\"", &duration(10_f64.powf(power)));
        power += 1.0;
    }
    for (part, label) in marks {
        let x = axes.x(*part);
        grid(svg, (x, axes.top), (x, axes.top + Axes::HEIGHT));
        text(svg, (x, axes.top + Axes::HEIGHT + 14.0), "text-anchor=\"middle\"", label);
    }
    for line in lines {
        let points: Vec<_> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", axes.x(*x), axes.y(*y))).collect();
        put(
            svg,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" points=\"{}\"/>\n",
                colour(&line.name),
                points.join(" ")
            ),
        );
    }
}

fn grid(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    put(
        svg,
        format_args!(
            "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#dddddd\" stroke-width=\"1\"/>\n"
        ),
    );
}

/// Microseconds in short form.
pub fn duration(micros: f64) -> String {
    match micros {
        us if us >= 1e6 => format!("{} s", short(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", short(us / 1e3)),
        us if us >= 1.0 => format!("{} us", short(us)),
        us => format!("{} ns", short(us * 1e3)),
    }
}

/// A number with three significant digits at most.
pub fn short(value: f64) -> String {
    match value.abs() {
        whole if whole >= 100.0 || (whole - whole.round()).abs() < 0.005 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_tags_are_closed() {
        let bars =
            vec![("a<b".to_owned(), 3.0, "3 & more".to_owned()), ("c".to_owned(), 0.0, "0".to_owned())];
        let series = vec![Series { name: "esker".to_owned(), points: vec![(0.0, 1.0), (1.0, 5000.0)] }];
        let marks = vec![(0.5, "p50".to_owned())];
        let panels = [
            Panel::Bars { title: "t".to_owned(), bars },
            Panel::Lines { title: "u".to_owned(), marks, series },
        ];
        let svg = draw("title", "how to read it", &panels);
        assert!(svg.contains("a&lt;b"));
        assert!(svg.contains("3 &amp; more"));
        assert!(!svg.contains("NaN"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn an_empty_chart_is_still_a_picture() {
        let panel = Panel::Lines { title: String::new(), marks: Vec::new(), series: Vec::new() };
        assert!(!draw("", "", &[panel]).contains("NaN"));
        assert!(draw("", "", &[]).contains("</svg>"));
    }

    #[test]
    fn durations_read_well() {
        let all = [0.25, 1.0, 53.25, 184.0, 2_500.0, 1e6].map(duration);
        assert_eq!(all, ["250 ns", "1 us", "53.2 us", "184 us", "2.50 ms", "1 s"]);
    }
}
