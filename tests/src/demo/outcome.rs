//! What steps come to, as data: for the screen, and as JSON.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// What a step that held has shown.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The facts.
    pub detail: Vec<Fact>,
    /// What commands printed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transcripts: Vec<Transcript>,
}

/// A fact.
#[derive(Debug, Serialize)]
pub struct Fact {
    /// What was done.
    pub did: String,
    /// What came of it.
    pub came: String,
    /// What was measured, by name; durations in milliseconds.
    pub numbers: Value,
}

/// A command and its output.
#[derive(Debug, Serialize)]
pub struct Transcript {
    /// The command, as a user would type it.
    pub command: String,
    /// What it wrote to its standard output.
    pub output: String,
}

impl Outcome {
    pub(super) fn fact(
        &mut self,
        did: impl Into<String>,
        came: impl Into<String>,
        numbers: impl Into<Value>,
    ) {
        self.detail.push(Fact { did: did.into(), came: came.into(), numbers: numbers.into() });
    }
}

/// A step.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// If it did not: what was expected, and what came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What it has shown; empty if it did not hold.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed_ms: f64,
}

impl StepReport {
    pub(super) fn new(name: &str, elapsed: Duration, outcome: Result<Outcome>) -> Self {
        let (outcome, failure) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::default(), Some(format!("{error:#}"))),
        };
        let elapsed_ms = millis(elapsed);
        Self { name: name.to_owned(), ok: failure.is_none(), failure, outcome, elapsed_ms }
    }
}

/// The whole demo.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether every step held.
    pub ok: bool,
    /// How long it took, without taking the cluster away.
    pub elapsed_ms: f64,
    /// The steps, in their order.
    pub steps: Vec<StepReport>,
}

impl Report {
    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.ok = !self.steps.is_empty() && self.steps.iter().all(|step| step.ok);
        self.elapsed_ms = millis(elapsed);
    }
}

/// A duration in words.
pub(super) fn shown(duration: Duration) -> String {
    format!("{:.2} ms", millis(duration))
}

/// In milliseconds, to the microsecond.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn one_failed_step_fails_the_demo_and_says_why() {
        let step = |outcome| StepReport::new("step", Duration::from_millis(1), outcome);
        let mut report = Report { steps: vec![step(Ok(Outcome::default()))], ..Report::default() };
        report.finish(Duration::ZERO);
        assert!(report.ok);
        report.steps.push(step(Err(anyhow!("came: nothing")).context("expected an answer")));
        report.finish(Duration::ZERO);
        assert!(!report.ok);
        let failure = report.steps[1].failure.as_deref();
        assert_eq!(failure, Some("expected an answer: came: nothing"));
    }

    #[test]
    fn a_demo_without_steps_has_shown_nothing() {
        let mut report = Report::default();
        report.finish(Duration::ZERO);
        assert!(!report.ok);
    }
}
