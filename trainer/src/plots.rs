//! The pictures of a model: is it learning, is it good, what does it see.
//!
//! Drawn in memory, with a font of our own: the same on a server without fonts.

use std::ops::Range;
use std::sync::OnceLock;

use anyhow::anyhow;
use chrono::DateTime;
use model::{AlertChange, AlertState, FEATURES, Model};
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use crate::evaluate::{self, Curves, Scored};
use crate::fleet::{Car, Fleet};
use crate::split::Part;
use crate::train::{Trained, cars};

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 700;
const FONT: &str = "sans-serif";

const BLUE_LINE: RGBColor = RGBColor(31, 90, 166);
const ORANGE: RGBColor = RGBColor(217, 95, 2);
const GREY: RGBColor = RGBColor(110, 110, 110);
const RED_AREA: RGBColor = RGBColor(200, 30, 30);

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// All plots: file name and PNG.
pub fn plots(trained: &Trained, fleet: &Fleet) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let model = &trained.model;
    let seed = model.manifest().training.seed;
    let test: Vec<_> = cars(fleet, seed, Part::Test).map(|car| evaluate::score(model, car, i64::MIN)).collect();
    let mut plots = vec![
        ("loss.png".to_owned(), picture(HEIGHT, |canvas| loss(canvas, model))?),
        ("residuals.png".to_owned(), picture(HEIGHT, |canvas| residuals(canvas, trained))?),
    ];
    if let Some(curves) = Curves::new(&test) {
        plots.push(("detection.png".to_owned(), picture(HEIGHT - 80, |canvas| detection(canvas, model, &curves))?));
    }
    if let Some(shown) = car_to_show(&test) {
        plots.push(("car.png".to_owned(), picture(HEIGHT, |canvas| days_of_a_car(canvas, model, shown))?));
    }
    Ok(plots)
}

/// Draws, and encodes as PNG.
fn picture(height: u32, draw: impl FnOnce(&Canvas<'_>) -> Drawn) -> anyhow::Result<Vec<u8>> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let font = epaint_default_fonts::HACK_REGULAR;
    if !*REGISTERED.get_or_init(|| register_font(FONT, FontStyle::Normal, font).is_ok()) {
        return Err(anyhow!("the built-in font cannot be read"));
    }
    let mut pixels = vec![255; (WIDTH * height * 3) as usize];
    {
        let canvas = BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area();
        let drawn = canvas.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&canvas));
        drawn.and_then(|()| Ok(canvas.present()?)).map_err(|error| anyhow!("{error}"))?;
    }
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, WIDTH, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(png)
}

fn builder<'a, 'b>(canvas: &'a Canvas<'b>, title: &str) -> ChartBuilder<'a, 'b, BitMapBackend<'b>> {
    let mut builder = ChartBuilder::on(canvas);
    builder.caption(title, (FONT, 22)).margin(16).x_label_area_size(48).y_label_area_size(72);
    builder
}

/// Draws axes with their names, and hands back the chart.
macro_rules! chart {
    ($canvas:expr, $title:expr, $x:expr, $y:expr, $x_name:expr, $y_name:expr) => {{
        let mut chart = builder($canvas, $title).build_cartesian_2d($x, $y)?;
        chart
            .configure_mesh()
            .x_desc($x_name)
            .y_desc($y_name)
            .x_label_formatter(&|x: &f64| format!("{}", (x * 1000.0).round() / 1000.0))
            .axis_desc_style((FONT, 17))
            .label_style((FONT, 15))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        chart
    }};
}

macro_rules! legend {
    ($chart:expr, $position:expr) => {
        $chart
            .configure_series_labels()
            .position($position)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 16))
            .draw()?
    };
}

macro_rules! line {
    ($chart:expr, $points:expr, $colour:expr, $label:expr) => {{
        let colour = $colour;
        $chart
            .draw_series(LineSeries::new($points, colour.stroke_width(2)))?
            .label($label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
    }};
}

fn loss(canvas: &Canvas<'_>, model: &Model) -> Drawn {
    let metrics = &model.manifest().metrics;
    let (training, validation) = (&metrics.training_loss, &metrics.validation_loss);
    let highest = training.iter().chain(validation).copied().fold(0.0, f64::max) * 1.05;
    let epochs = training.len() as f64;
    let title = format!("Training of {}: reconstruction error", model.manifest().name);
    let mut chart =
        chart!(canvas, &title, 1.0..epochs.max(2.0), 0.0..highest, "epoch", "mean squared error (standardised inputs)");
    let points =
        |losses: &[f64]| losses.iter().enumerate().map(|(i, loss)| ((i + 1) as f64, *loss)).collect::<Vec<_>>();
    line!(chart, points(training), BLUE_LINE, "training cars, while learning");
    line!(chart, points(validation), ORANGE, "validation cars, after the epoch");
    legend!(chart, SeriesLabelPosition::UpperRight);
    Ok(())
}

fn detection(canvas: &Canvas<'_>, model: &Model, curves: &Curves) -> Drawn {
    let (left, right) = canvas.split_horizontally(WIDTH / 2);
    let threshold = model.manifest().threshold;
    let title = format!("ROC, test cars: AUC {:.3}", curves.auc());
    let mut chart = chart!(
        &left,
        &title,
        0.0..1.0,
        0.0..1.0,
        "healthy readings above (false positive rate)",
        "faulty readings above (recall)"
    );
    line!(chart, thin(curves.roc().map(|(x, y, _)| (x, y))), BLUE_LINE, "score");
    line!(chart, vec![(0.0, 0.0), (1.0, 1.0)], GREY, "chance");
    let at = curves.roc().filter(|(.., score)| *score > threshold).last();
    mark(&mut chart, at, threshold)?;
    legend!(chart, SeriesLabelPosition::LowerRight);
    let title = format!("Precision and recall: average precision {:.3}", curves.average_precision());
    let mut chart = chart!(
        &right,
        &title,
        0.0..1.0,
        0.0..1.0,
        "faulty readings above (recall)",
        "of those above, faulty (precision)"
    );
    line!(chart, thin(curves.precision_recall().map(|(x, y, _)| (x, y))), BLUE_LINE, "score");
    let share = curves.precision_recall().last().map_or(0.0, |(_, precision, _)| precision);
    line!(chart, vec![(0.0, share), (1.0, share)], GREY, "chance");
    let at = curves.precision_recall().filter(|(.., score)| *score > threshold).last();
    mark(&mut chart, at, threshold)?;
    legend!(chart, SeriesLabelPosition::LowerLeft);
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    BitMapBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// A dot where the threshold is.
fn mark(chart: &mut Chart<'_, '_>, at: Option<(f64, f64, f32)>, threshold: f32) -> Drawn {
    let Some((x, y, _)) = at else { return Ok(()) };
    chart
        .draw_series([Circle::new((x, y), 6, ORANGE.filled())])?
        .label(format!("at the threshold, {threshold:.2}"))
        .legend(|(x, y)| Circle::new((x + 11, y), 6, ORANGE.filled()));
    Ok(())
}

/// Points of a curve, no more than can be seen.
fn thin(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    const STEP: f64 = 5e-4;
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut last = None;
    for point in points {
        let far = kept.last().is_none_or(|(x, y)| (point.0 - x).abs() + (point.1 - y).abs() > STEP);
        if far {
            kept.push(point);
        }
        last = Some(point);
    }
    kept.extend(last);
    kept
}

fn residuals(canvas: &Canvas<'_>, trained: &Trained) -> Drawn {
    const BINS: usize = 100;
    const RANGE: Range<f64> = -6.0..6.0;
    let width = (RANGE.end - RANGE.start) / BINS as f64;
    let mut all = vec![0u64; BINS];
    let mut widest = (0, vec![0u64; BINS], 0.0);
    let bin = |value: f64| (((value - RANGE.start) / width).max(0.0) as usize).min(BINS - 1);
    for feature in 0..FEATURES.len() {
        let mut counts = vec![0u64; BINS];
        let mut fourth = 0.0;
        for row in &trained.residuals {
            counts[bin(row[feature])] += 1;
            fourth += row[feature].clamp(-8.0, 8.0).powi(4);
        }
        all.iter_mut().zip(&counts).for_each(|(sum, count)| *sum += count);
        if fourth > widest.2 {
            widest = (feature, counts, fourth);
        }
    }
    let density = |counts: &[u64]| -> Vec<(f64, f64)> {
        let total = counts.iter().sum::<u64>().max(1) as f64 * width;
        let point = |(i, count): (usize, &u64)| (RANGE.start + (i as f64 + 0.5) * width, *count as f64 / total);
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(point).collect()
    };
    let title = "Residuals of the training cars: what the network does not explain";
    let mut chart = chart!(
        canvas,
        title,
        RANGE,
        (1e-5..2.0f64).log_scale(),
        "residual, in standard deviations of its feature (outermost bars: all beyond)",
        "density (log scale)"
    );
    let bars = density(&all)
        .into_iter()
        .map(|(x, y)| Rectangle::new([(x - 0.5 * width, 1e-5), (x + 0.5 * width, y)], BLUE_LINE.mix(0.35).filled()));
    chart
        .draw_series(bars)?
        .label("all 18 features")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 22, y + 5)], BLUE_LINE.mix(0.35).filled()));
    line!(chart, density(&widest.1), ORANGE, format!("{} (heaviest tails)", FEATURES[widest.0]));
    let normal = |x: f64| (x, ((-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()).max(1e-5));
    let xs = (0..=240).map(|i| RANGE.start + 0.05 * f64::from(i));
    line!(chart, xs.map(normal).collect::<Vec<_>>(), GREY, "normal distribution");
    legend!(chart, SeriesLabelPosition::UpperRight);
    Ok(())
}

/// The test car with a fault that scored highest; without faults the one that scored highest.
fn car_to_show<'a, 'b>(test: &'b [Scored<'a>]) -> Option<&'b Scored<'a>> {
    let during = |car: &Car, time_ms: i64| car.faults.is_empty() || car.is_faulty(time_ms);
    let highest = |scored: &Scored<'_>| {
        let scores = scored.scores.iter().filter(|(t, _)| during(scored.car, *t)).map(|(_, score)| *score);
        (!scored.car.faults.is_empty(), scores.fold(0.0, f32::max))
    };
    let shown = test.iter().filter(|scored| scored.scores.len() > 1);
    shown.max_by(|a, b| {
        let (a, b) = (highest(a), highest(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    })
}

fn days_of_a_car(canvas: &Canvas<'_>, model: &Model, shown: &Scored<'_>) -> Drawn {
    let (manifest, scores) = (model.manifest(), &shown.scores);
    let threshold = f64::from(manifest.threshold);
    let (first, last) = (scores[0].0, scores[scores.len() - 1].0);
    let highest = scores.iter().map(|(_, score)| f64::from(*score)).fold(1.5 * threshold, f64::max) * 1.12;
    const DAY_MS: i64 = 86_400_000;
    // Hours since the first midnight, so that the marks are at whole hours.
    let midnight = first - first.rem_euclid(DAY_MS);
    let hours = |time_ms: i64| (time_ms - midnight) as f64 / 3_600_000.0;
    let clock = |hours: &f64| {
        let time = DateTime::from_timestamp_millis(midnight + (hours * 3_600_000.0).round() as i64).unwrap_or_default();
        time.format(if last - first > DAY_MS { "%d %b %H:%M" } else { "%H:%M" }).to_string()
    };
    let day = DateTime::from_timestamp_millis(midnight).unwrap_or_default().format("%Y-%m-%d");
    let title = format!("A test car from {day}: score, threshold, and what the workshop found");
    let mut chart = builder(canvas, &title).build_cartesian_2d(hours(first)..hours(last), 0.0..highest)?;
    chart
        .configure_mesh()
        .x_desc("event time (UTC)")
        .y_desc("score (largest smoothed residual, in deviations)")
        .x_label_formatter(&clock)
        .x_labels(8)
        .axis_desc_style((FONT, 17))
        .label_style((FONT, 15))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for fault in &shown.car.faults {
        let window = [(hours(fault.began_ms.max(first)), 0.0), (hours(fault.repaired_ms.min(last)), highest)];
        chart
            .draw_series([Rectangle::new(window, RED_AREA.mix(0.15).filled())])?
            .label(format!("fault: {} ({})", fault.kind, fault.component))
            .legend(|(x, y)| Rectangle::new([(x, y - 6), (x + 22, y + 6)], RED_AREA.mix(0.3).filled()));
    }
    // A line over the time that a car is parked would say that it had a score then.
    let mut steps: Vec<i64> = scores.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    steps.sort_unstable();
    let pause_ms = 3 * steps[steps.len() / 2];
    for (i, trip) in scores.chunk_by(|a, b| b.0 - a.0 < pause_ms).enumerate() {
        let points = trip.iter().map(|(t, score)| (hours(*t), f64::from(*score)));
        let series = chart.draw_series(LineSeries::new(points, BLUE_LINE.stroke_width(2)))?;
        if i == 0 {
            series.label("score").legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], BLUE_LINE.stroke_width(3)));
        }
    }
    line!(
        chart,
        [(hours(first), threshold), (hours(last), threshold)].into_iter(),
        ORANGE,
        format!("threshold, {threshold:.2}")
    );
    let mut state = AlertState::default();
    let opened = scores
        .iter()
        .filter(|(_, score)| state.step(&manifest.alert, *score, manifest.threshold) == Some(AlertChange::Opened));
    let opened: Vec<_> = opened.map(|(t, score)| (hours(*t), f64::from(*score))).collect();
    chart
        .draw_series(opened.iter().map(|at| TriangleMarker::new(*at, 9, BLACK.filled())))?
        .label("alert opens")
        .legend(|(x, y)| TriangleMarker::new((x + 11, y), 8, BLACK.filled()));
    legend!(chart, SeriesLabelPosition::UpperLeft);
    Ok(())
}
