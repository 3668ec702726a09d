//! What can be seen while the demo runs: one line per stage on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::audit::thousands;

/// Between two plain lines, where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// One stage at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The stage.
    pub(crate) stage: &'static str,
    /// Readings that it has finished; `None` where nothing flows.
    pub(crate) done: Option<u64>,
    /// Readings that wait for it; `None` where that means nothing.
    pub(crate) lag: Option<u64>,
    /// Whatever else is worth knowing.
    pub(crate) note: String,
}

/// Shows lines as they change.
pub(crate) struct Live {
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    began: Instant,
    last: Vec<(u64, Instant)>,
    rates: Vec<f64>,
    plain_at: Instant,
}

impl Live {
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(|| (MultiProgress::new(), Vec::new()));
        let now = Instant::now();
        Self { bars, began: now, last: Vec::new(), rates: Vec::new(), plain_at: now }
    }

    /// Says something once, above the lines.
    pub(crate) fn say(&self, text: &str) {
        let text = format!("{:>5.1} s  {text}", self.began.elapsed().as_secs_f64());
        match &self.bars {
            // A terminal that went away is no reason to stop the demo.
            Some((bars, _)) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }

    /// Shows the stages as they are now.
    pub(crate) fn show(&mut self, lines: &[Line]) {
        self.update_rates(lines);
        match &mut self.bars {
            Some((multi, bars)) => {
                while bars.len() < lines.len() {
                    let bar = multi.add(ProgressBar::new_spinner());
                    bar.set_style(ProgressStyle::with_template("  {wide_msg}").expect("the template is valid"));
                    bars.push(bar);
                }
                for ((line, rate), bar) in lines.iter().zip(&self.rates).zip(bars) {
                    bar.set_message(text(line, *rate));
                    bar.tick();
                }
            }
            None if self.plain_at.elapsed() >= PLAIN_EVERY => {
                self.plain_at = Instant::now();
                for (line, rate) in lines.iter().zip(&self.rates) {
                    eprintln!("{:>5.1} s  {}", self.began.elapsed().as_secs_f64(), text(line, *rate));
                }
            }
            None => {}
        }
    }

    /// Takes the lines away: the report follows.
    pub(crate) fn finish(self) {
        if let Some((multi, bars)) = self.bars {
            for bar in bars {
                bar.finish_and_clear();
            }
            drop(multi.clear());
        }
    }

    fn update_rates(&mut self, lines: &[Line]) {
        let now = Instant::now();
        self.last.resize(lines.len(), (0, self.began));
        self.rates.resize(lines.len(), 0.0);
        for ((line, last), rate) in lines.iter().zip(&mut self.last).zip(&mut self.rates) {
            let seconds = now.duration_since(last.1).as_secs_f64();
            // Smoothed over about two seconds, so that the figure can be read.
            if seconds > 0.0 {
                let latest = line.done.unwrap_or(0).saturating_sub(last.0) as f64 / seconds;
                let weight = 1.0 - (-seconds / 2.0).exp();
                *rate += weight * (latest - *rate);
            }
            *last = (line.done.unwrap_or(0), now);
        }
    }
}

fn text(line: &Line, rate: f64) -> String {
    let Some(done) = line.done else { return format!("{:<13}{:38}{}", line.stage, "", line.note) };
    let lag = line.lag.map_or(String::new(), |lag| format!("lag {:>7}", thousands(lag)));
    let text = format!(
        "{:<13}{:>12} {:>8}/s  {lag:<12} {}",
        line.stage,
        thousands(done),
        thousands(rate.round() as u64),
        line.note
    );
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_and_lag() {
        let line = Line { stage: "sink", done: Some(1_234_567), lag: Some(1_000), note: "24 objects".into() };
        assert_eq!(text(&line, 9_999.6), "sink            1,234,567   10,000/s  lag   1,000  24 objects");
        let line = Line { stage: "cars", done: Some(0), lag: None, note: String::new() };
        assert_eq!(text(&line, 0.0), "cars                    0        0/s");
        let line = Line { stage: "trainer", done: None, lag: None, note: "collecting".into() };
        assert_eq!(text(&line, 0.0), "trainer                                            collecting");
    }
}
