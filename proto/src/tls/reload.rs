//! Credentials that are replaced while their peer runs.
//!
//! Connections that are open go on; the next handshake shows and trusts what the files hold now. So certificates are
//! renewed by replacing their files, and an authority by listing the old one and the new one for a while.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::credentials::Credentials;
use super::{Tls, TlsError, TlsFiles};
use crate::metrics::gauges;

/// How often the files are looked at. Whoever cannot wait sends SIGHUP.
const LOOKS: Duration = Duration::from_secs(10);

/// What came of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The files hold what is used already.
    Same,
    /// They are used from the next handshake on, and end then.
    Taken(SystemTime),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabels {
    result: &'static str,
}

/// How reloads ended.
pub(super) type Reloads = Family<ResultLabels, Counter>;

impl Tls {
    /// Reads the files again. After Err everything is as before, with the credentials that were used until now: files
    /// that are being replaced one after the other do not fit one another for a while.
    ///
    /// # Errors
    /// As [`Tls::load`], and when the certificate is another peer's or has ended.
    pub fn reload(&self) -> Result<Reload, TlsError> {
        let read = self.read_again();
        let result = match &read {
            Ok(Reload::Same) => return read,
            Ok(Reload::Taken(_)) => "taken",
            Err(_) => "refused",
        };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
        read
    }

    fn read_again(&self) -> Result<Reload, TlsError> {
        let new = Credentials::read(&self.files)?;
        if new.same(&self.current()) {
            return Ok(Reload::Same);
        }
        let path = || self.files.cert.clone();
        if *new.identity() != self.identity {
            let (expected, found) = (self.identity.clone(), new.identity().clone());
            return Err(TlsError::Other { path: path(), expected, found });
        }
        let ends = new.ends();
        if ends <= SystemTime::now() {
            return Err(TlsError::Ended { path: path(), at: ends });
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = std::sync::Arc::new(new);
        Ok(Reload::Taken(ends))
    }

    /// When the first of the certificates that are shown now ends.
    #[must_use]
    pub fn ends(&self) -> SystemTime {
        self.current().ends()
    }

    /// Shows to monitoring when the certificate ends and how reloads ended.
    pub fn register(&self, registry: &mut Registry) {
        for result in ["taken", "refused"] {
            // Shown from the beginning: what begins with 1 does not rise.
            drop(self.reloads.get_or_create(&ResultLabels { result }));
        }
        let help = "Times that replaced certificates were taken, or could not be";
        registry.register("certificate_reloads", help, self.reloads.clone());
        registry.register_collector(Box::new(Now(self.clone())));
    }
}

/// What is looked up whenever somebody asks.
#[derive(Debug)]
struct Now(Tls);

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ends = self.0.ends().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let ends = i64::try_from(ends).unwrap_or(i64::MAX);
        let help = "When the certificate that is used ends, in seconds since 1970";
        gauges::<[(&str, &str); 0]>(&mut encoder, "certificate_expiry_timestamp_seconds", help, [([], ends)])
    }
}

/// Takes up files that are replaced, within ten seconds or at SIGHUP, until it is dropped. Without it SIGHUP ends the
/// process.
///
/// # Errors
/// When the process can have no handler for signals.
pub fn keep_fresh(tls: Tls) -> std::io::Result<impl Future<Output = ()> + Send> {
    let hangups = signal(SignalKind::hangup())?;
    Ok(watch(tls, hangups))
}

async fn watch(tls: Tls, mut hangups: Signal) {
    let mut ticks = tokio::time::interval(LOOKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Looked at before it is read: what changes meanwhile is seen the next time.
    let mut seen = Seen::of(&tls.files);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangups.recv() => true,
        };
        let now = Seen::of(&tls.files);
        if !asked && now == seen {
            continue;
        }
        seen = now;
        match tls.reload() {
            Ok(Reload::Taken(ends)) => {
                let ends = humantime::format_rfc3339_seconds(ends);
                tracing::info!(%ends, "took new credentials for the connections to come");
            }
            Ok(Reload::Same) if asked => tracing::info!("the credentials are the same"),
            Ok(Reload::Same) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot take new credentials; going on with the old ones");
            }
        }
    }
}

/// What tells that a file is another one: of the authorities, the certificate and the key. A name that leads nowhere is
/// none.
#[derive(Debug, PartialEq, Eq)]
struct Seen([Option<Stamp>; 3]);

/// Device, inode, modification time in seconds and nanoseconds, size.
type Stamp = (u64, u64, i64, i64, u64);

impl Seen {
    fn of(files: &TlsFiles) -> Self {
        Self([&files.ca, &files.cert, &files.key].map(|path| {
            let m = fs::metadata(path).ok()?;
            Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        }))
    }
}
