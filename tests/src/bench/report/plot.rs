//! Pictures of what scales with the number of Services, as SVG and PNG.
//!
//! Numbers of Services are on a logarithmic axis, and so are figures that differ much. The direct
//! path is the broken line, Shunt the thick one.

use super::table::whole;
use super::{Report, Row};
use crate::bench::contender::Contender;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The size of a picture, and where its legend begins.
const SIZE: (u32, u32) = (960, 480);
const LEGEND: i32 = 780;
/// Figures further apart than this are on a logarithmic axis.
const FAR: f64 = 20.0;
const DIM: RGBColor = RGBColor(96, 96, 96);

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
    let shown = |row: &&Row| row.services.is_some() && report.is_ordinary(row);
    for row in report.rows.iter().filter(shown) {
        by_key.entry(&row.key).or_default().push(row);
    }
    by_key.retain(|_, rows| rows.iter().map(|row| row.services).collect::<BTreeSet<_>>().len() > 1);
    by_key.into_iter().map(|(key, rows)| plot(key, &rows, field)).collect()
}

fn plot(key: &str, rows: &[&Row], field: &[Contender]) -> Result<Plot> {
    let unit = if rows[0].unit == "/s" { "per second" } else { &rows[0].unit };
    let title = format!("{}, {unit}", rows[0].what);
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
    paint(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), &title, unit, &lines)?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    let bitmap = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
    paint(&bitmap, &title, unit, &lines)?;
    drop(bitmap);
    let mut png = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    image::ImageEncoder::write_image(encoder, &pixels, SIZE.0, SIZE.1, image::ColorType::Rgb8)?;
    Ok(Plot { name: key.to_owned(), svg, png })
}

/// Where a value lies on an axis, and which values are named on it.
struct Axis {
    is_log: bool,
    ends: (f64, f64),
    named: Vec<f64>,
}

impl Axis {
    /// Of numbers of Services: those that were measured are named.
    fn services(values: BTreeSet<u64>) -> Self {
        let named: Vec<_> = values.into_iter().map(|value| value as f64).collect();
        let (first, last) = (named[0], named[named.len() - 1]);
        Self { is_log: true, ends: (first * 0.85, last / 0.85), named }
    }

    /// Of figures, with room above them, and from zero unless they are far apart.
    fn figures(values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let least = values.filter(|value| *value > 0.0).fold(most, f64::min);
        if most > FAR * least {
            let ends = (least / 1.5, most * 1.5);
            let decades = (ends.0.log10().floor() as i32)..=(ends.1.log10() as i32);
            let named =
                decades.flat_map(|power| [1.0, 3.0].map(|digit| digit * 10_f64.powi(power)));
            let named = named.filter(|value| (ends.0..ends.1).contains(value)).collect();
            return Self { is_log: true, ends, named };
        }
        let top = if most > 0.0 { most * 1.1 } else { 1.0 };
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|digit| digit * 10_f64.powf((top / 8.0).log10().floor()))
            .into_iter()
            .find(|step| top / step <= 8.0)
            .unwrap_or(top);
        let named = (0..=8).map(|index| f64::from(index) * step).filter(|at| *at <= top).collect();
        Self { is_log: false, ends: (0.0, top), named }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (first, last) = (self.place(self.ends.0), self.place(self.ends.1));
        let share = (self.place(*value) - first) / (last - first);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.named.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.0..self.ends.1
    }
}

fn paint<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    unit: &str,
    lines: &Lines,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let points = || lines.values().flatten();
    let x = Axis::services(points().map(|(x, _)| *x as u64).collect());
    let y = Axis::figures(points().map(|(_, y)| *y));
    let y_desc = if y.is_log { format!("{unit}, logarithmic") } else { unit.to_owned() };
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(LEGEND);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 22))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .axis_style(DIM)
        .x_desc("Services")
        .y_desc(y_desc)
        .x_label_formatter(&|value| whole(value.round() as usize))
        .y_label_formatter(&|value| named(*value))
        .label_style(("sans-serif", 15))
        .draw()?;
    for (index, (who, line)) in lines.iter().enumerate() {
        let style = style(*who);
        let at = 60 + 26 * index as i32;
        let key = [(0, at), (28, at)];
        if *who == Contender::Direct {
            let _ = chart.draw_series(DashedLineSeries::new(line.iter().copied(), 7, 5, style))?;
            right.draw(&PathElement::new([(0, at), (11, at)], style))?;
            right.draw(&PathElement::new([(17, at), (28, at)], style))?;
        } else {
            let _ = chart.draw_series(LineSeries::new(line.iter().copied(), style))?;
            right.draw(&PathElement::new(key, style))?;
        }
        let circles = line.iter().map(|dot| Circle::new(*dot, 4, style.color.filled()));
        let _ = chart.draw_series(circles)?;
        right.draw(&Text::new(who.name(), (36, at - 8), ("sans-serif", 16)))?;
    }
    area.present()?;
    Ok(())
}

/// A value on an axis: a few digits, in thousands from ten thousand on.
fn named(value: f64) -> String {
    match value {
        large if large >= 1e4 => format!("{}k", named(large / 1e3)),
        // Without what a logarithm left behind the sixth digit.
        small => ((small * 1e6).round() / 1e6).to_string(),
    }
}

/// The same for a contender in every picture, and told apart by those who see few colours.
fn style(who: Contender) -> ShapeStyle {
    let (colour, width) = match who {
        Contender::Direct => (DIM, 2),
        Contender::Shunt => (RGBColor(0, 114, 178), 4),
        Contender::Iptables | Contender::KubeProxyIptables => (RGBColor(213, 94, 0), 2),
        Contender::IptablesLegacy => (RGBColor(230, 159, 0), 2),
        Contender::Nftables | Contender::KubeProxyNftables => (RGBColor(0, 158, 115), 2),
    };
    ShapeStyle { color: colour.to_rgba(), filled: true, stroke_width: width }
}
