//! Pictures of what scales with the number of Services, as SVG and PNG.

use super::{Report, Row};
use crate::bench::contender::Contender;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::collections::BTreeMap;

/// The size of a picture.
const SIZE: (u32, u32) = (900, 520);

/// A picture.
pub(in crate::bench) struct Plot {
    /// The name of its files, without their endings.
    pub(in crate::bench) name: String,
    /// As SVG.
    pub(in crate::bench) svg: String,
    /// As PNG.
    pub(in crate::bench) png: Vec<u8>,
}

/// A line of a picture: figures by the number of Services.
type Lines = BTreeMap<Contender, Vec<(f64, f64)>>;

/// Draws what was measured at two numbers of Services at least.
pub(in crate::bench) fn draw(report: &Report, field: &[Contender]) -> Result<Vec<Plot>> {
    // The font comes with the program: a machine for servers has none.
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| anyhow!("the font that comes with the bench does not load"))?;
    let mut by_key: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| row.services.is_some()) {
        by_key.entry(&row.key).or_default().push(row);
    }
    by_key.retain(|_, rows| rows.len() > 1);
    by_key.into_iter().map(|(key, rows)| plot(key, &rows, field)).collect()
}

fn plot(key: &str, rows: &[&Row], field: &[Contender]) -> Result<Plot> {
    let title = format!("{} ({})", rows[0].what, rows[0].unit);
    let mut lines = Lines::new();
    for row in rows {
        for who in field {
            let cell = row.cells.get(who).filter(|cell| cell.wrong.is_none());
            let point = cell.zip(row.services);
            let Some((cell, services)) = point else { continue };
            lines.entry(*who).or_default().push((services as f64, cell.figure.median));
        }
    }
    let mut svg = String::new();
    paint(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), &title, &lines)?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    paint(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), &title, &lines)?;
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    image::ImageEncoder::write_image(encoder, &pixels, SIZE.0, SIZE.1, image::ColorType::Rgb8)?;
    Ok(Plot { name: key.to_owned(), svg, png })
}

fn paint<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, lines: &Lines) -> Result<()>
where
    B::ErrorType: 'static,
{
    let points = || lines.values().flatten();
    let (least, most) =
        points().fold((f64::MAX, 0.0_f64), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d((least..most).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("Services")
        .x_label_formatter(&|x| super::table::number(*x))
        .y_label_formatter(&|y| super::table::number(*y))
        .label_style(("sans-serif", 15))
        .draw()?;
    for (index, (who, line)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let width = if *who == Contender::Shunt { 3 } else { 1 };
        let style = colour.stroke_width(width);
        chart
            .draw_series(LineSeries::new(line.iter().copied(), style))?
            .label(who.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let dots = line.iter().map(|point| Circle::new(*point, 3, colour.filled()));
        let _ = chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    area.present()?;
    Ok(())
}
