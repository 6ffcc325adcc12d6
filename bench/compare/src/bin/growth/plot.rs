//! Four panels, one an axis: a line a format, processor time of a read.
//!
//! Knows: figures, pixels. Must never know: how they were measured.

use crate::axis::{Axis, Format};
use crate::measured::Measured;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (1000, 720);

fn colour(format: Format) -> RGBColor {
    match format {
        Format::Raw => RGBColor(110, 110, 110),
        Format::Qed => RGBColor(222, 125, 38),
        Format::Qcow2 => RGBColor(31, 105, 176),
    }
}

/// Draws all of them.
pub fn draw(path: &Path, all: &[Measured]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, axis) in root.split_evenly((2, 2)).iter().zip(Axis::ALL) {
        panel(area, axis, all)?;
    }
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    axis: Axis,
    all: &[Measured],
) -> Result<(), Box<dyn Error>> {
    let points: Vec<&Measured> = all.iter().filter(|measured| measured.point.axis == axis).collect();
    // the places are powers: one step apart each
    let mut places: Vec<u64> = points.iter().map(|measured| measured.point.at).collect();
    places.sort_unstable();
    places.dedup();
    let at =
        |measured: &Measured| places.iter().position(|place| *place == measured.point.at).unwrap_or(0) as f64;
    let cost = |measured: &Measured| measured.spread(|run| run.cpu_us);
    let most = points.iter().map(|measured| cost(measured).2).fold(0.1, f64::max);
    let last = places.len().saturating_sub(1) as f64;
    let title = format!("us of processor time a read, by {}", axis.title());
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(46)
        .build_cartesian_2d(-0.2..last + 0.2, 0.0..most * 1.05)?;
    let name = |x: &f64| match places.get(x.round() as usize) {
        Some(place) if (x - x.round()).abs() < 0.01 => axis.label(*place),
        _ => String::new(),
    };
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(places.len() * 2).x_label_formatter(&name).disable_x_mesh();
    mesh.label_style(("sans-serif", 11)).light_line_style(WHITE).draw()?;
    for format in Format::ALL {
        let line: Vec<&&Measured> =
            points.iter().filter(|measured| measured.point.format == format).collect();
        if line.is_empty() {
            continue;
        }
        let colour = colour(format);
        let spots = line.iter().map(|measured| (at(measured), cost(measured).1));
        chart
            .draw_series(LineSeries::new(spots, colour.stroke_width(2)))?
            .label(format.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(line.iter().map(|measured| {
            let (low, _, high) = cost(measured);
            PathElement::new([(at(measured), low), (at(measured), high)], colour.stroke_width(1))
        }))?;
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::LowerRight).label_font(("sans-serif", 12));
    labels.background_style(WHITE.mix(0.8)).border_style(WHITE).draw()?;
    Ok(())
}
