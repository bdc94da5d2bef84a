//! Figures as SVG.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::prelude::{Cartesian2d, DrawingArea, IntoLogRange as _, IntoSegmentedCoord as _, SegmentValue};
use plotters::prelude::{IntoDrawingArea as _, LineSeries, RGBColor, SVGBackend};
use plotters::style::{BLACK, Color as _, ShapeStyle, WHITE};

use super::cases::Group;
use super::report::{Row, Spread, median};

/// Told apart by those who see few colours, too.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];
const FONT: &str = "sans-serif";
const TITLE: u32 = 26;
const TEXT: u32 = 18;
const SIZE: (u32, u32) = (900, 560);
/// Height of a bar, and what stands above and below them.
const BAR: u32 = 28;
const AROUND: u32 = 150;
/// A pause this many times as long as most is not drawn beside them.
const FAR: f64 = 10.0;

/// Points with a name.
struct Line {
    name: &'static str,
    points: Vec<(f64, Spread)>,
}

/// What a picture of lines says besides them.
struct Picture<'a> {
    file: &'a str,
    title: &'a str,
    x: &'a str,
    /// On the x axis each step is a factor, not a difference.
    factors: bool,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// Draws everything for which there are rows.
///
/// # Errors
/// When a file cannot be written.
pub fn all(dir: &Path, rows: &[Row]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let of = |name, groups: &[Group]| Line { name, points: points(rows, groups) };
    let memory = Picture {
        file: "pause-memory.svg",
        title: "Pause against memory that is not written",
        x: "MiB",
        factors: true,
    };
    lines(dir, &memory, &[of("idle", &[Group::Idle])])?;
    let written = Picture {
        file: "pause-dirty-rate.svg",
        title: "Pause against the rate of writes",
        x: "MB/s",
        factors: false,
    };
    lines(dir, &written, &[of("256 MiB", &[Group::Writers]), of("1 GiB", &[Group::Large])])?;
    let counts = Picture {
        file: "pause-counts.svg",
        title: "Pause against how many there are",
        x: "number",
        factors: true,
    };
    let counted = [
        of("processes", &[Group::Processes]),
        of("threads", &[Group::Threads]),
        of("descriptors", &[Group::Descriptors]),
        of("mappings", &[Group::Mappings]),
        of("TCP connections", &[Group::Connections]),
    ];
    lines(dir, &counts, &counted)?;
    split(&dir.join("pause-split.svg"), rows)
}

fn points(rows: &[Row], groups: &[Group]) -> Vec<(f64, Spread)> {
    let rows = rows.iter().filter(|row| groups.contains(&row.group));
    rows.map(|row| (f64::from(row.amount), row.downtime_ms)).collect()
}

/// The powers of ten around all values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let low = 10_f64.powf(low.max(1e-3).log10().floor());
    low..10_f64.powf(high.max(1e-3).log10().ceil()).max(low * 10.0)
}

fn lines(dir: &Path, picture: &Picture<'_>, lines: &[Line]) -> Result<()> {
    let lines: Vec<&Line> = lines.iter().filter(|line| !line.points.is_empty()).collect();
    let all = || lines.iter().flat_map(|line| &line.points);
    if all().next().is_none() {
        return Ok(());
    }
    let path = dir.join(picture.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let y = decades(all().flat_map(|(_, pause)| [pause.min, pause.max])).log_scale();
    let most = all().map(|(x, _)| *x).fold(0.0, f64::max);
    let mut builder = ChartBuilder::on(&area);
    builder
        .margin(20)
        .margin_right(50)
        .x_label_area_size(60)
        .y_label_area_size(80)
        .caption(picture.title, (FONT, TITLE));
    if picture.factors {
        let x = decades(all().map(|(x, _)| *x));
        draw(builder.build_cartesian_2d(x.log_scale(), y).map_err(failed)?, picture, &lines)?;
    } else {
        draw(builder.build_cartesian_2d(0.0..most * 1.05, y).map_err(failed)?, picture, &lines)?;
    }
    area.present().map_err(failed)
}

fn draw<'a, 'b: 'a, X, Y>(
    mut chart: Chart<'a, 'b, X, Y>,
    picture: &Picture<'_>,
    lines: &[&Line],
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(picture.x)
        .y_desc("ms")
        .label_style((FONT, TEXT))
        .axis_desc_style((FONT, TEXT))
        .x_label_formatter(&|value| value.to_string())
        .y_label_formatter(&|value| value.to_string())
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(failed)?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        let style = ShapeStyle { color: colour.to_rgba(), filled: true, stroke_width: 2 };
        let medians = line.points.iter().map(|(x, pause)| (*x, pause.median));
        let series = chart.draw_series(LineSeries::new(medians.clone(), style)).map_err(failed)?;
        series.label(line.name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 24, y)], style));
        chart.draw_series(medians.map(|at| Circle::new(at, 4, style))).map_err(failed)?;
        let spreads = line.points.iter().map(|(x, pause)| vec![(*x, pause.min), (*x, pause.max)]);
        chart.draw_series(spreads.map(|ends| PathElement::new(ends, style))).map_err(failed)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

fn legend<'a, 'b: 'a, X: Ranged, Y: Ranged>(
    chart: &mut Chart<'a, 'b, X, Y>,
    position: SeriesLabelPosition,
) -> Result<()> {
    let mut labels = chart.configure_series_labels();
    labels.position(position).legend_area_size(30).label_font((FONT, TEXT));
    labels.background_style(WHITE.mix(0.9)).border_style(BLACK.mix(0.3)).draw().map_err(failed)
}

/// A bar for each row, cut where one part of its pause ends and the next begins.
fn split(path: &Path, rows: &[Row]) -> Result<()> {
    let usual = median(rows.iter().map(|row| row.downtime_ms.median));
    let (mut near, far): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row: &&Row| row.downtime_ms.median <= FAR * usual);
    // The first row belongs to the top.
    near.reverse();
    let Some(first) = near.first() else { return Ok(()) };
    let height = AROUND + BAR * u32::try_from(near.len())?;
    let area: Area<'_> = SVGBackend::new(path, (SIZE.0 + 200, height)).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let sum = |row: &&Row| row.split_ms.iter().map(|(_, ms)| ms).sum::<f64>();
    let longest = near.iter().map(sum).fold(0.1, f64::max);
    let mut title = "Parts of the pause, medians".to_owned();
    if !far.is_empty() {
        let names: Vec<_> = far.iter().map(|row| row.name.as_str()).collect();
        title = format!("{title} (too long to be drawn: {})", names.join(", "));
    }
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .caption(title, (FONT, if far.is_empty() { TITLE } else { TEXT }))
        .x_label_area_size(60)
        .y_label_area_size(230)
        // Room for the names of the parts, to the right of the bars.
        .build_cartesian_2d(0.0..longest * 1.25, (0..near.len()).into_segmented())
        .map_err(failed)?;
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => near.get(*index).map_or_else(String::new, |row| row.name.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("ms")
        .y_labels(near.len())
        .y_label_formatter(&name)
        .label_style((FONT, TEXT))
        .axis_desc_style((FONT, TEXT))
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(failed)?;
    for (part, ((name, _), colour)) in first.split_ms.iter().zip(COLOURS).enumerate() {
        let bars = near.iter().enumerate().map(|(index, row)| {
            let from: f64 = row.split_ms.iter().take(part).map(|(_, ms)| ms).sum();
            let to = from + row.split_ms.get(part).map_or(0.0, |(_, ms)| *ms);
            let corners = [(from, SegmentValue::Exact(index)), (to, SegmentValue::Exact(index + 1))];
            let mut bar = Rectangle::new(corners, colour.filled());
            bar.set_margin(4, 4, 0, 0);
            bar
        });
        chart
            .draw_series(bars)
            .map_err(failed)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 18, y + 6)], colour.filled()));
    }
    legend(&mut chart, SeriesLabelPosition::MiddleRight)?;
    area.present().map_err(failed)
}

/// Errors of the library borrow from what draws.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}
