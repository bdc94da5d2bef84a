//! Slowing a container down that does not converge, and giving it back what was taken.

use std::time::{Duration, Instant};

use super::failure::Failure;
use super::ports::{ContainerSource, GroupSource, PortError, Throttled};
use super::source::Session;
use crate::journal::Record;
use crate::telemetry::chain;

/// What a source session has taken from its container.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// In force, to be set back on an undo.
    taken: Throttled,
    /// Per cent of its CPU time.
    percent: u32,
    /// CPUs that it used before the first step.
    cpus: Option<f64>,
    /// CPU time that it had used at this moment.
    sample: Option<(Instant, Duration)>,
}

impl Throttle {
    /// Per cent of its CPU time that the container lacks now.
    pub(super) fn percent(&self) -> u32 {
        self.percent
    }

    /// Sets everything back. May be called again.
    pub(super) fn lift(&mut self, container: &dyn ContainerSource) -> Result<(), PortError> {
        if self.taken.0.is_empty() {
            return Ok(());
        }
        container.unthrottle(&self.taken)?;
        *self = Self::default();
        Ok(())
    }

    /// CPUs that the container has used since the last call; `None` the first time.
    fn use_of_cpus(&mut self, groups: &dyn GroupSource) -> Result<Option<f64>, PortError> {
        let (now, used) = (Instant::now(), groups.cpu_used()?);
        let before = self.sample.replace((now, used));
        Ok(before.map(|(then, before)| {
            used.saturating_sub(before).as_secs_f64() / now.duration_since(then).as_secs_f64().max(1e-3)
        }))
    }
}

impl Session {
    /// Notes how much the container runs as long as nothing holds it back: what a throttle is relative to.
    pub(super) fn watch_cpus(&mut self) {
        if self.limits.throttle == 0 || self.throttle.percent > 0 {
            return;
        }
        let Some(groups) = self.groups.as_deref() else { return };
        match self.throttle.use_of_cpus(groups) {
            Ok(cpus) => self.throttle.cpus = cpus.or(self.throttle.cpus),
            Err(error) => self.cannot_throttle(&error),
        }
    }

    /// Takes `percent` of its CPU time from the container. That it cannot be done is no failure of the migration, which
    /// goes on without.
    pub(super) fn slow_down(&mut self, percent: u32) -> Result<(), Failure> {
        let Some(before) = self.throttle.cpus else { return Ok(()) };
        let cpus = before * (1.0 - f64::from(percent.min(100)) / 100.0);
        let Some(groups) = self.groups.as_mut() else { return Ok(()) };
        let throttled = match groups.plan_throttle(cpus, &self.throttle.taken) {
            Ok(throttled) => throttled,
            Err(error) => {
                self.cannot_throttle(&error);
                return Ok(());
            }
        };
        let (container, epoch) = (self.begin.container.clone(), self.begin.epoch);
        self.agent
            .journal
            .append(&[Record::Throttled { container, epoch, throttled: throttled.clone() }])
            .map_err(Failure::Journal)?;
        self.throttle.taken = throttled;
        super::failure::failpoint("session-source-precopy-throttle")?;
        if let Err(error) = groups.throttle(&self.throttle.taken) {
            self.container.unthrottle(&self.throttle.taken)?;
            self.cannot_throttle(&error);
            return Ok(());
        }
        self.throttle.percent = percent;
        self.publish.event(format!(
            "throttled by {percent} %: {cpus:.2} CPUs instead of the {before:.2} that it used"
        ));
        super::failure::failpoint("session-source-precopy-throttled")
    }

    fn cannot_throttle(&mut self, error: &PortError) {
        self.limits.throttle = 0;
        self.publish.event(format!("the container cannot be throttled: {}", chain(error)));
    }
}
