//! The source's side from the freeze on: switchover, commit point, completion.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::account;

use super::failure::{AbortOnPanic, Failure};
use super::ports::Settled;
use super::recover::{self, Unacknowledged};
use super::round::{Sent, When};
use super::source::{Session, held, no_engine, unexpected};
use super::status::{Downtime, Phase};
use crate::commit::{self, OnAck};
use crate::journal::Record;
use crate::transfer::link::LinkError;
use crate::transfer::message::PeerMessage;

/// How long the target may take from the image to Ready. The container stands still meanwhile.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the connection may be silent after Commit before another one is tried.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long late frames are relayed at most, and how long without one ends it sooner.
const RELAY: Duration = Duration::from_secs(3);
const RELAY_QUIET: Duration = Duration::from_secs(1);

/// What is known about the pause when the target has said Ready.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    /// When the freeze began.
    since: Instant,
    freeze: Duration,
    last_pages: Duration,
    capture: Duration,
    restore: Duration,
    /// Both ways between image and Ready.
    wire: Duration,
    /// Pages of the last round.
    pages: u64,
    /// Frames that were held until the image was sent.
    frames: usize,
    /// The account until Ready.
    steps: Steps,
}

/// Bytes that go ahead of the freeze on the control connection. A connection that was silent for longer than its
/// retransmission timeout begins slowly again (RFC 5681, 4.1; `tcp_slow_start_after_idle`): an image of some hundred KiB
/// would then take several round trips.
const WARM: usize = 512 << 10;

/// An account as it travels.
type Steps = Vec<(String, Duration)>;

/// What an Ack says, and what came before it.
struct Acked {
    /// From the arrival of Commit to the thaw.
    resumed: Duration,
    /// From the arrival of Commit to the sending of Ack.
    took: Duration,
    /// The first of these by step.
    steps: Steps,
    /// From the thaw to the container's first answer.
    served: Option<Duration>,
}

/// Makes it one.
pub(super) fn named(steps: Vec<account::Step>) -> Steps {
    steps.into_iter().map(|(name, took)| (name.to_owned(), took)).collect()
}

impl Session {
    /// Freezes, sends the rest, waits for Ready.
    pub(super) fn switchover(&mut self) -> Result<Frozen, Failure> {
        let phase = Phase::Switchover;
        self.send(&PeerMessage::Warm { padding: vec![0; WARM] })?;
        self.settle()?;
        // The engine begins the account, when it asks the first thread to stop.
        let since = self.freeze()?;
        self.step(phase, "frozen")?;
        let freeze = since.elapsed();
        self.step(phase, "locked")?;

        let began = Instant::now();
        if let Some(bulk) = self.bulk.as_mut() {
            bulk.hurry(self.limits.pause_limit()).map_err(Failure::Bulk)?;
        }
        // Both go on beside the pages and the capture.
        let groups = self.begin_last_groups()?;
        self.container.begin_final_state()?;
        account::lap("last-pages.begin-host");
        self.mounts()?;
        account::lap("last-pages.mounts");
        let Sent { pages, files } = self.copy_round(When::Frozen)?;
        let index = self.round - 1;
        self.unended = Some(index);
        account::lap("last-pages.end");
        let last_pages = began.elapsed();
        tracing::debug!(entries = files.entries, bytes = files.bytes, "last files");
        self.step(phase, "last-pages")?;

        let began = Instant::now();
        let image = self.engine.as_mut().ok_or_else(no_engine)?.capture();
        // Whatever the capture says: another attempt begins with what these have.
        let groups = self.send_last_groups(groups);
        account::lap("capture.groups");
        let host = self.container.final_state();
        account::lap("capture.network");
        let image = image?;
        groups?;
        let host = host?;
        let capture = began.elapsed();
        self.step(phase, "captured")?;
        let frames = held(&mut self.lock, Duration::ZERO);
        let count = frames.len();
        let sent = Instant::now();
        self.send(&PeerMessage::Switchover { index, image: Box::new(image), host, held: frames })?;
        account::lap("wire.send");
        let (restore, there) = loop {
            match self.answer(READY_TIMEOUT)? {
                PeerMessage::Ready { took, steps } => break (took, steps),
                PeerMessage::RoundDone { index: done } if done <= index => {}
                other => return Err(unexpected(&other)),
            }
        };
        let wire = sent.elapsed().saturating_sub(restore);
        let mut steps = named(account::take());
        let sending = steps.last().map_or(Duration::ZERO, |(_, took)| *took);
        steps.push(("wire.both-ways".to_owned(), wire.saturating_sub(sending)));
        steps.extend(there);
        account::begin(Instant::now());
        self.step(phase, "ready")?;
        Ok(Frozen {
            since,
            freeze,
            last_pages,
            capture,
            restore,
            wire,
            pages: pages.pages,
            frames: count,
            steps,
        })
    }

    /// The commit point. On Err nothing was written and the migration may be undone; after Ok it may not, and
    /// COMMITTED is on disk.
    pub(super) fn commit_point(&mut self) -> Result<(), Failure> {
        if !self.cancel.commit() {
            return Err(Failure::Cancelled(self.cancel.reason()));
        }
        self.committed = Some(AbortOnPanic);
        let record = Record::Committed { container: self.begin.container.clone(), epoch: self.begin.epoch };
        // From here on no error leads back, whatever became of the record.
        let written = self.agent.journal.append(&[record]);
        super::failure::failpoint("session-source-switchover-appended").unwrap_or_else(|failure| {
            tracing::warn!(%failure, "ignored: the commit record is written");
        });
        if let Err(error) = written.and_then(|()| self.agent.journal.sync()) {
            self.container.settle(Settled::Frozen, self.begin.epoch);
            recover::sync_committed(&self.agent, &self.publish, &error);
        }
        account::lap("commit.journal");
        if let Some(handle) = self.agent.table().sources.get_mut(&self.begin.container) {
            handle.synced = true;
        }
        Ok(())
    }

    /// Tells the target, waits for its Ack, cleans up.
    pub(super) fn complete(mut self, frozen: Frozen) {
        let commit = frozen.since.elapsed();
        let commit = commit.saturating_sub(
            frozen.freeze + frozen.last_pages + frozen.capture + frozen.restore + frozen.wire,
        );
        let span = tracing::info_span!("phase", phase = Phase::Completing.name());
        let entered = span.clone().entered();
        self.ignore_failpoint("committed");
        let told = Instant::now();
        let frames = held(&mut self.lock, Duration::ZERO);
        let sent = match self.link.as_mut() {
            Some(link) => link.send(&PeerMessage::Commit { held: frames }),
            None => Err(LinkError::Interrupted),
        };
        account::lap("commit.tell");
        let until_told = told.duration_since(frozen.since);
        self.publish.update(|status| status.phase = Phase::Completing);
        self.publish.event(format!(
            "committed; {} last pages, {} frames held at the capture",
            frozen.pages, frozen.frames
        ));
        self.bulk = None;
        let acked = sent.and_then(|()| self.await_ack());
        self.ignore_failpoint("answered");
        match acked {
            Ok(Acked { resumed, took, steps: there, served }) => {
                let back = told.elapsed().saturating_sub(took) / 2;
                let mut steps = frozen.steps;
                steps.extend(named(account::take()));
                steps.push(("wire.commit".to_owned(), back));
                steps.extend(there);
                account::end();
                let downtime = Downtime {
                    total: until_told + back + resumed,
                    freeze: frozen.freeze,
                    last_pages: frozen.last_pages,
                    capture: frozen.capture,
                    restore: frozen.restore,
                    commit,
                    network: resumed,
                    wire: frozen.wire + back,
                    first_packet: served,
                    steps,
                };
                self.publish.update(|status| status.downtime = Some(downtime.clone()));
                drop(entered);
                self.clean_up(&downtime);
            }
            Err(error) => {
                drop(entered);
                self.publish
                    .event(format!("no Ack on the session's connection ({error}); telling Commit again"));
                self.hand_over();
            }
        }
    }

    /// After the commit point a failpoint may stop or kill the agent there, and nothing else.
    fn ignore_failpoint(&self, step: &str) {
        if let Err(failure) = self.step(Phase::Completing, step) {
            tracing::warn!(%failure, "ignored: the migration is committed");
        }
    }

    /// Waits for Ack and relays what arrives meanwhile.
    fn await_ack(&mut self) -> Result<Acked, LinkError> {
        let mut served = None;
        let deadline = Instant::now() + ACK_TIMEOUT;
        let Some(link) = self.link.as_mut() else { return Err(LinkError::Interrupted) };
        while Instant::now() < deadline {
            let arrivals = self.lock.as_ref().and_then(|lock| lock.arrivals());
            if link.wait_beside(Duration::from_millis(100), arrivals)? {
                match link.read()? {
                    PeerMessage::Ack { resumed, took, steps } => {
                        let view = self.agent.source_view(&self.begin.container);
                        if commit::source_on_ack(&view, self.begin.epoch) == OnAck::Kill {
                            return Ok(Acked { resumed, took, steps, served });
                        }
                    }
                    // The target was announced: what has not come here by now goes there.
                    PeerMessage::Attached => {
                        let frames = held(&mut self.lock, Duration::ZERO);
                        link.send(&PeerMessage::Late { frames, last: true })?;
                    }
                    PeerMessage::Served { after } => served = Some(after),
                    PeerMessage::RoundDone { .. } => {}
                    other => {
                        tracing::warn!(answer = other.name(), "unexpected answer to Commit; asking again");
                        return Err(LinkError::Interrupted);
                    }
                }
            }
            let frames = held(&mut self.lock, Duration::ZERO);
            if !frames.is_empty() {
                link.send(&PeerMessage::Late { frames, last: false })?;
            }
        }
        Err(LinkError::Timeout { peer: self.begin.peer.clone(), limit: ACK_TIMEOUT })
    }

    /// Lets go of the frozen copy and tells Commit for ever, on this thread.
    fn hand_over(mut self) {
        if let Some(engine) = self.engine.take() {
            engine.into_frozen();
        }
        self.container.settle(Settled::Frozen, self.begin.epoch);
        let Self { agent, begin, publish, container, lock, .. } = self;
        recover::until_acknowledged(&agent, &begin, &publish, Unacknowledged { container, lock });
    }

    /// The target owns it: kill the copy here, remove what is left, end the record, relay late frames, lift the
    /// lock last.
    fn clean_up(mut self, downtime: &Downtime) {
        if let Some(engine) = self.engine.take()
            && let Err(error) = engine.kill()
        {
            tracing::warn!(error = %crate::telemetry::chain(&error), "engine: kill incomplete; using the cgroup");
            recover::retry("kill the copy that was moved away", &self.publish, || self.container.kill());
        }
        self.ignore_failpoint("killed");
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let first = downtime.first_packet.map(|after| format!(", first packet {:.1} after it", ms(after)));
        let line = format!(
            "downtime={:.1}ms (freeze {:.1} last-pages {:.1} capture {:.1} restore {:.1} commit {:.1} network {:.1} wire {:.1}){}",
            ms(downtime.total),
            ms(downtime.freeze),
            ms(downtime.last_pages),
            ms(downtime.capture),
            ms(downtime.restore),
            ms(downtime.commit),
            ms(downtime.network),
            ms(downtime.wire),
            first.unwrap_or_default(),
        );
        tracing::info!("{line}");
        let stop = recover::killed(&self.agent, &self.begin, &*self.container, &self.publish);
        self.publish.end(Phase::Succeeded, "Committed", line);

        let (began, mut last) = (Instant::now(), Instant::now());
        while began.elapsed() < RELAY && last.elapsed() < RELAY_QUIET && !stop.load(Ordering::SeqCst) {
            let frames = held(&mut self.lock, Duration::from_millis(50));
            if frames.is_empty() {
                continue;
            }
            last = Instant::now();
            let Some(link) = self.link.as_mut() else { break };
            if link.send(&PeerMessage::Late { frames, last: false }).is_err() {
                break;
            }
        }
        if let Some(mut lock) = self.lock.take() {
            recover::retry("release the network lock", &self.publish, || lock.release());
        }
        self.agent.table().sources.remove(&self.begin.container);
    }
}
