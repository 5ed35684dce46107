//! The plot: for each figure one bar per endpoint, its length relative to the longest bar of that figure.

use std::fmt::Write as _;

use anyhow::Result;

use super::report::{Report, number};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
const TOP: f64 = 44.0;
/// Longest bar: room for a number after it.
const LONGEST: f64 = 520.0;
/// Colours of the endpoints, told apart also without colour vision (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];

/// Draws a report.
///
/// # Errors
/// Never: a string takes every text.
pub fn plot(report: &Report) -> Result<String> {
    let bars = report.endpoints.len();
    let row_height = BAR * count(bars) + GAP;
    let height = TOP + row_height * count(report.rows.len()) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (n, (name, version)) in report.endpoints.iter().enumerate() {
        let x = LEFT + 200.0 * count(n);
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(n)
        )?;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"24\">{} ({})</text>",
            x + 17.0,
            escape(name),
            escape(version)
        )?;
    }
    for (n, row) in report.rows.iter().enumerate() {
        let y = TOP + row_height * count(n);
        let middle = y + BAR * count(bars) / 2.0 + 4.0;
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}, {}</text>",
            LEFT - 8.0,
            escape(row.name),
            row.unit
        )?;
        let longest = row
            .values
            .iter()
            .flatten()
            .map(|value| value.median)
            .fold(f64::MIN_POSITIVE, f64::max);
        for (k, value) in row.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (top, length) = (
                y + BAR * count(k),
                (value.median / longest * LONGEST).max(1.0),
            );
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>",
                BAR - 2.0,
                colour(k)
            )?;
            writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                LEFT + length + 5.0,
                top + BAR - 4.0,
                number(value.median)
            )?;
        }
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn colour(endpoint: usize) -> &'static str {
    COLOURS[endpoint % COLOURS.len()]
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
