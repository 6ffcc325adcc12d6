//! Bars: a panel a work, a bar an engine, with whiskers from the smallest to the largest run.
//!
//! Knows: rows, pixels. Must never know: how they were measured.

use crate::engine::Maker;
use crate::setting::Format;
use crate::table::{Figure, Row, Section, Spread, digits};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

/// Panels beside each other.
const COLUMNS: usize = 2;
const WIDTH: i32 = 500;
/// Of a bar and the gap below it.
const LINE: i32 = 17;
const HEAD: i32 = 44;
const LABELS: i32 = 190;
const BARS: i32 = 220;

fn colour(row: &Row) -> RGBColor {
    match (row.engine.maker, row.engine.format) {
        (Maker::Fio, _) => RGBColor(120, 120, 120),
        (Maker::Quod, Format::Raw) => RGBColor(122, 173, 219),
        (Maker::Quod, _) => RGBColor(31, 105, 176),
        (Maker::QuodPlain | Maker::QuodThreads | Maker::QuodWritethrough, _) => RGBColor(161, 198, 229),
        (Maker::Qemu, _) => RGBColor(222, 125, 38),
        (Maker::Imago | Maker::ImagoPool, _) => RGBColor(72, 150, 84),
        (Maker::Qcow2Rs, _) => RGBColor(176, 62, 70),
    }
}

fn height(section: &Section) -> i32 {
    HEAD + LINE * section.rows.len() as i32 + 12
}

/// Draws sections into a file, two beside each other.
pub fn draw(path: &Path, sections: &[&Section], figure: Figure) -> Result<(), Box<dyn Error>> {
    let lines: Vec<&[&Section]> = sections.chunks(COLUMNS).collect();
    let tall = |line: &[&Section]| line.iter().map(|section| height(section)).max().unwrap_or(0);
    let total: i32 = lines.iter().map(|line| tall(line)).sum();
    let size = ((WIDTH * COLUMNS as i32) as u32, total.max(1) as u32);
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    let mut top = 0;
    for line in lines {
        for (column, section) in line.iter().enumerate() {
            panel(&area, (column as i32 * WIDTH, top), section, figure)?;
        }
        top += tall(line);
    }
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(area: &Area<'_>, at: (i32, i32), section: &Section, figure: Figure) -> Result<(), Box<dyn Error>> {
    let (left, top) = (at.0 + 8, at.1 + 8);
    let text = |size: i32, weight| {
        let font = FontDesc::new(FontFamily::SansSerif, f64::from(size), weight);
        TextStyle::from(font).color(&RGBColor(30, 30, 30))
    };
    let (bold, plain) = (text(13, FontStyle::Bold), text(11, FontStyle::Normal));
    area.draw_text(&format!("{}: {}", section.workload.name, figure.unit(section)), &bold, (left, top))?;
    area.draw_text(section.workload.title, &plain, (left, top + 17))?;
    let longest = section.rows.iter().map(|row| figure.spread(row).high).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| left + LABELS + (value / longest * f64::from(BARS)) as i32;
    let name = plain.pos(Pos::new(HPos::Right, VPos::Center));
    let value = plain.pos(Pos::new(HPos::Left, VPos::Center));
    for (index, row) in section.rows.iter().enumerate() {
        let y = at.1 + HEAD + LINE * index as i32;
        let middle = y + LINE / 2;
        let Spread { median, low, high } = figure.spread(row);
        area.draw_text(&row.name(), &name, (left + LABELS - 6, middle))?;
        let bar = [(left + LABELS, y + 2), (x(median).max(left + LABELS + 1), y + LINE - 2)];
        area.draw(&Rectangle::new(bar, colour(row).filled()))?;
        if high > low {
            let whisker = BLACK.stroke_width(1);
            area.draw(&PathElement::new([(x(low), middle), (x(high), middle)], whisker))?;
            for end in [x(low), x(high)] {
                area.draw(&PathElement::new([(end, middle - 3), (end, middle + 3)], whisker))?;
            }
        }
        area.draw_text(&digits(median), &value, (x(high.max(median)) + 6, middle))?;
    }
    Ok(())
}
