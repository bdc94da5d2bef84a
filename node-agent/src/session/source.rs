//! The source's side of a migration, up to the freeze. What follows is in [`super::switchover`].
//!
//! A session is a list of phases. Until the commit point every failure, of whatever kind, ends in
//! [`Session::undo`], which gives the container back as it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::source::{Source, TreeSpec};
use image::groups::Groups;
use image::packed::Codec;
use image::shape::Ahead;
use image::shape::Shape;
use image::{Refusal, Subject};
use proto::telemetry::Parent;

use super::agent::{Agent, Cancel, Publisher, is_frozen};
use super::clocks::{Distance, HostClocks};
use super::failure::{AbortOnPanic, Failure, failpoint};
use super::orders::{Limits, Start};
use super::policy::{self, Measured, Next};
use super::ports::{ContainerSource, EthernetFrame, FileSource, GroupSource, NetLock, Settled, Throttled};
use super::round::{Sent, When};
use super::status::{Phase, Round};
use super::throttle::Throttle;
use crate::journal::{Begin, End, Record};
use crate::peer;
use crate::transfer::bulk::BulkSender;
use crate::transfer::link::{Link, LinkError};
use crate::transfer::message::{PeerMessage, Purpose};
use crate::transfer::pace::rest;

/// How long the target may take to build the sandbox.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the target may take to change the mounts of its sandbox.
const MOUNTS_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the target may take to put a round in its place after it has been sent.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a switchover is tried when what stands against it passes by itself.
const SWITCHOVER_TRIES: u32 = 10;

/// How often the target is asked for its clocks.
const CLOCK_QUESTIONS: usize = 4;

/// A source session, on its own thread.
pub(super) struct Session {
    /// Set at the commit point. The first field, so that it is dropped before the engine's source, which
    /// would give the container back.
    pub(super) committed: Option<AbortOnPanic>,
    pub(super) agent: Arc<Agent>,
    pub(super) begin: Begin,
    /// Where the migration's trace goes on.
    trace: Option<Parent>,
    pub(super) limits: Limits,
    target_incarnation: u64,
    pub(super) cancel: Arc<Cancel>,
    pub(super) publish: Publisher,
    pub(super) container: Box<dyn ContainerSource>,
    tree: TreeSpec,
    pub(super) engine: Option<Source>,
    pub(super) files: Option<Box<dyn FileSource>>,
    /// `None` while another thread looks at them.
    pub(super) groups: Option<Box<dyn GroupSource>>,
    pub(super) lock: Option<Box<dyn NetLock>>,
    pub(super) link: Option<Link>,
    pub(super) bulk: Option<BulkSender>,
    /// The shape that the target has.
    pub(super) shape: Option<Shape>,
    /// What the target was told to prepare.
    pub(super) told_ahead: Vec<Ahead>,
    /// The groups that the target has.
    pub(super) told_groups: Option<Groups>,
    pub(super) generation: u32,
    /// The next round of the bulk stream.
    pub(super) round: u32,
    /// The round that was sent in the pause, when the target was not told that it has ended.
    pub(super) unended: Option<u32>,
    measured: Vec<Measured>,
    pub(super) throttle: Throttle,
    prepared_at: Instant,
}

impl Session {
    /// A session whose BEGIN is in the journal.
    pub(super) fn new(
        agent: Arc<Agent>,
        begin: Begin,
        order: &Start,
        cancel: Arc<Cancel>,
        publish: Publisher,
        container: Box<dyn ContainerSource>,
    ) -> Self {
        let tree = container.tree();
        Self {
            committed: None,
            agent,
            begin,
            trace: order.trace.clone(),
            limits: order.policy,
            target_incarnation: order.target_incarnation,
            cancel,
            publish,
            tree,
            groups: Some(container.groups()),
            container,
            engine: None,
            files: None,
            lock: None,
            link: None,
            bulk: None,
            shape: None,
            told_ahead: Vec::new(),
            told_groups: None,
            generation: 0,
            round: 0,
            unended: None,
            measured: Vec::new(),
            throttle: Throttle::default(),
            prepared_at: Instant::now(),
        }
    }

    /// Runs it to its end.
    pub(super) fn run(mut self) {
        // Unwinding gives back what it can; what it cannot the next run of the agent does.
        let _guard = AbortOnPanic;
        let span = tracing::info_span!("migration", id = %self.begin.migration, role = "source", epoch = self.begin.epoch);
        Parent::adopt(self.trace.as_ref(), &span);
        let _entered = span.enter();
        match self.until_ready() {
            Ok(frozen) => match self.commit_point() {
                Ok(()) => self.complete(frozen),
                Err(failure) => self.undo(&failure),
            },
            Err(failure) => self.undo(&failure),
        }
    }

    fn until_ready(&mut self) -> Result<super::switchover::Frozen, Failure> {
        self.phase(Phase::Checking, Self::check)?;
        self.phase(Phase::Preparing, Self::prepare)?;
        let mut turn = 1;
        loop {
            self.phase(Phase::PreCopy, Self::pre_copy)?;
            match self.phase(Phase::Switchover, Self::switchover) {
                Err(failure) if failure.passes() && turn < SWITCHOVER_TRIES => {
                    self.give_time(turn, &failure)?;
                    turn += 1;
                }
                other => return other,
            }
        }
    }

    /// The one wrapper around every phase: span, published state, failpoint, cancel, time.
    fn phase<T>(&mut self, phase: Phase, run: fn(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let span = tracing::info_span!("phase", phase = phase.name());
        let _entered = span.enter();
        let began = Instant::now();
        self.publish.update(|status| status.phase = phase);
        self.step(phase, "begin")?;
        let result = run(self);
        tracing::debug!(took = ?began.elapsed(), ok = result.is_ok(), "phase ended");
        result
    }

    /// Between two steps: a failpoint, and the cancel flag.
    pub(super) fn step(&self, phase: Phase, step: &str) -> Result<(), Failure> {
        failpoint(&format!("session-source-{}-{step}", phase.name()))?;
        self.check_cancel()
    }

    pub(super) fn check_cancel(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() { Err(Failure::Cancelled(self.cancel.reason())) } else { Ok(()) }
    }

    fn check(&mut self) -> Result<(), Failure> {
        if self.begin.frozen_before || is_frozen(&self.begin.cgroup) {
            return Err(Failure::Refused(vec![Refusal {
                pid: 0,
                subject: Subject::Container,
                reason: "it is frozen: a stopped program cannot be asked for what only it can read"
                    .to_owned(),
                way_out: "resume it first".to_owned(),
            }]));
        }
        let inventory = engine::source::inspect(&self.tree).map_err(|error| Failure::Source(error.into()))?;
        let mut refusals = inventory.refusals;
        refusals.extend(self.container.host_refusals()?);
        let groups = self.first_groups(&mut refusals)?;
        if !refusals.is_empty() {
            return Err(Failure::Refused(refusals));
        }
        self.publish.event(format!(
            "{} processes, {} threads, {} descriptors, {} connections, {} bytes resident",
            inventory.processes,
            inventory.threads,
            inventory.descriptors,
            inventory.connections,
            inventory.resident_bytes
        ));
        self.step(Phase::Checking, "dial")?;
        let mut link = self.dial(Purpose::Session)?;
        link.send(&PeerMessage::Check {
            facts: self.agent.node.facts(),
            needs: inventory.needs,
            memory_bytes: inventory.resident_bytes,
            groups: Box::new(groups),
        })?;
        self.link = Some(link);
        match self.answer(peer::ANSWER_TIMEOUT)? {
            PeerMessage::Checked(lacks) if lacks.is_empty() => Ok(()),
            PeerMessage::Checked(lacks) => Err(Failure::Refused(lacks)),
            other => Err(unexpected(&other)),
        }
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.prepared_at = Instant::now();
        self.container.settle(Settled::Migrating, self.begin.epoch);
        let clocks = self.ask_clocks()?;
        let spec = self.container.spec()?;
        let streams = self.streams();
        self.send(&PeerMessage::Spec { spec, clocks, streams })?;
        let codecs = match self.answer(PREPARE_TIMEOUT)? {
            PeerMessage::Prepared { lacks, .. } if !lacks.is_empty() => return Err(Failure::Refused(lacks)),
            PeerMessage::Prepared { codecs: known, .. } => {
                known.into_iter().filter_map(Codec::from_byte).collect()
            }
            other => return Err(unexpected(&other)),
        };
        self.step(Phase::Preparing, "bulk")?;
        self.open_streams(streams, codecs)?;

        self.step(Phase::Preparing, "files")?;
        self.files = Some(self.container.files()?);
        self.step(Phase::Preparing, "attach")?;
        self.engine = Some(Source::attach(&self.tree)?);
        self.step(Phase::Preparing, "lock")?;
        self.lock = Some(self.container.lock()?);
        Ok(())
    }

    /// Asks the target what its clocks show, a few times: the quickest answer says most.
    fn ask_clocks(&mut self) -> Result<Distance, Failure> {
        let mut known: Option<Distance> = None;
        for _ in 0..CLOCK_QUESTIONS {
            let before = HostClocks::now();
            self.send(&PeerMessage::AskClocks)?;
            let there = match self.answer(peer::ANSWER_TIMEOUT)? {
                PeerMessage::Clocks(there) => there,
                other => return Err(unexpected(&other)),
            };
            let told = Distance::between(before, there, HostClocks::now());
            known = Some(known.map_or(told, |known| known.and(told)));
        }
        Ok(known.unwrap_or_default())
    }

    fn pre_copy(&mut self) -> Result<(), Failure> {
        loop {
            self.step(Phase::PreCopy, "round")?;
            self.watch_cpus();
            self.mounts()?;
            let began = Instant::now();
            let sent_before = self.bulk.as_ref().map_or(0, BulkSender::sent);
            let Sent { pages: stats, files } = self.copy_round(When::Running)?;
            let index = self.round - 1;
            self.send(&PeerMessage::RoundEnd { index })?;
            let sent = Instant::now();
            self.await_round(index)?;
            let took = began.elapsed();

            if self.measured.is_empty() {
                let (entries, bytes) = (files.entries, files.bytes);
                self.publish.event(format!("files: {entries} entries, {bytes} bytes"));
                self.tell_streams();
            }
            self.measured.push(Measured {
                dirty: stats.bytes + files.bytes,
                entries: files.entries,
                held: stats.held_back,
                took,
                fixed: stats.scan + sent.elapsed().min(took / 2),
                rest: Duration::ZERO,
                throttle: self.throttle.percent(),
            });
            let decision = policy::decide(&self.limits, &self.measured, self.prepared_at.elapsed());
            let bytes = self.bulk.as_ref().map_or(0, BulkSender::sent);
            let number = u32::try_from(self.measured.len()).unwrap_or(u32::MAX);
            let round = Round {
                index: number,
                pages: stats.pages,
                zero_pages: stats.zero_pages,
                bytes: bytes - sent_before,
                took,
                dirty_rate: decision.dirty_rate,
                transfer_rate: decision.transfer_rate,
                predicted_pause: decision.predicted,
                decision: decision.next.name(),
                reason: decision.reason.clone(),
            };
            tracing::info!(
                round = number,
                pages = stats.pages,
                zero = stats.zero_pages,
                took_ms = took.as_secs_f64() * 1e3,
                stopped_ms = stats.stopped.as_secs_f64() * 1e3,
                decision = round.decision,
                reason = round.reason,
                "pre-copy round"
            );
            // Only where dirty tracking needs it.
            let stopped = match stats.stopped.as_secs_f64() * 1e3 {
                0.0 => String::new(),
                ms => format!("; it stood still for {ms:.1} ms"),
            };
            if decision.next == Next::Cut {
                self.publish.hush();
            }
            self.publish.update(|status| {
                status.bytes = bytes;
                status.remaining = decision.remaining;
                status.events.push(format!("round {number}: {}: {}{stopped}", round.decision, round.reason));
                status.rounds.push(round);
            });
            match decision.next {
                Next::Round => {}
                Next::Throttle(percent) => self.slow_down(percent)?,
                Next::Cut => return Ok(()),
                Next::GiveUp => return Err(Failure::NotConverged(decision.reason.clone())),
            }
            let began = Instant::now();
            rest(policy::rest(&self.measured, &decision), &|| self.cancel.is_cancelled());
            if let Some(last) = self.measured.last_mut() {
                last.rest = began.elapsed();
            }
        }
    }

    /// Has the target's sandbox follow what the container mounted and unmounted, and waits until it has.
    pub(super) fn mounts(&mut self) -> Result<(), Failure> {
        let Some(mounts) = self.container.mounts()? else { return Ok(()) };
        self.send(&PeerMessage::Mounts(mounts))?;
        loop {
            match self.answer(MOUNTS_TIMEOUT)? {
                PeerMessage::MountsMade(lacks) if lacks.is_empty() => return Ok(()),
                PeerMessage::MountsMade(lacks) => return Err(Failure::Refused(lacks)),
                PeerMessage::RoundDone { index } if index < self.round => {}
                other => return Err(unexpected(&other)),
            }
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) fn await_round(&mut self, index: u32) -> Result<(), Failure> {
        loop {
            match self.answer(ROUND_TIMEOUT)? {
                PeerMessage::RoundDone { index: done } if done == index => return Ok(()),
                PeerMessage::RoundDone { index: done } if done < index => {}
                other => return Err(unexpected(&other)),
            }
        }
    }

    pub(super) fn dial(&self, purpose: Purpose) -> Result<Link, Failure> {
        let hello = peer::hello(&self.agent, &self.begin, self.target_incarnation, purpose);
        Ok(peer::dial(&self.agent, &self.begin.peer, &self.begin.peer_address, hello)?)
    }

    /// Sends a control message.
    pub(super) fn send(&mut self, message: &PeerMessage) -> Result<(), Failure> {
        let sent = self.link.as_mut().ok_or_else(no_link)?.send(message);
        sent.map_err(|error| self.why(error.into()))
    }

    /// Waits for a control message of the target; its own failure becomes the error.
    pub(super) fn answer(&mut self, limit: Duration) -> Result<PeerMessage, Failure> {
        let cancel = Arc::clone(&self.cancel);
        let link = self.link.as_mut().ok_or_else(no_link)?;
        match link.recv(limit, &mut || cancel.is_cancelled()) {
            Ok(PeerMessage::Failed { reason }) => Err(Failure::Peer(reason)),
            Ok(message) => Ok(message),
            Err(LinkError::Interrupted) => Err(Failure::Cancelled(self.cancel.reason())),
            Err(error) => Err(error.into()),
        }
    }

    /// The better reason, if there is one: a cancel, or what the target said before it closed.
    pub(super) fn why(&mut self, error: Failure) -> Failure {
        if self.cancel.is_cancelled() {
            return Failure::Cancelled(self.cancel.reason());
        }
        let Some(link) = self.link.as_mut() else { return error };
        loop {
            match link.recv(Duration::from_millis(200), &mut || false) {
                Ok(PeerMessage::Failed { reason }) => return Failure::Peer(reason),
                Ok(_) => {}
                Err(_) => return error,
            }
        }
    }

    /// Gives the container back: it runs on as before when this returns. Only before the commit point.
    fn undo(mut self, failure: &Failure) {
        self.publish.event(format!("giving the container back: {}", failure.text()));
        self.bulk = None;
        let slow = self.throttle.lift(&*self.container).is_err();
        if let Some(mut engine) = self.engine.take() {
            // Undo order: repair off, lock off, held frames delivered while it still stands, then the thaw.
            if let Err(error) = engine.leave_repair() {
                tracing::error!(error = %crate::telemetry::chain(&error), "engine: a socket stays in repair mode");
            }
            let locked = self.lock.as_mut().is_some_and(|lock| !super::recover::lift(&mut **lock));
            if let Err(error) = engine.abort() {
                tracing::error!(error = %crate::telemetry::chain(&error), "engine: undo incomplete");
                super::recover::give_back(
                    &self.begin,
                    &*self.container,
                    &Throttled::default(),
                    &self.publish,
                );
            }
            if locked && let Some(lock) = self.lock.as_mut() {
                super::recover::retry("lift the network lock", &self.publish, || lock.lift());
            }
        }
        if slow {
            super::recover::retry("lift the throttle", &self.publish, || {
                self.throttle.lift(&*self.container)
            });
        }
        self.container.settle(Settled::Running, self.begin.epoch);
        if let Err(error) = self.agent.journal.append(&[Record::Ended {
            container: self.begin.container.clone(),
            epoch: self.begin.epoch,
            end: End::Undone,
        }]) {
            tracing::error!(%error, "cannot journal the end of an undone migration; a restart will undo it again");
        }
        self.agent.table().sources.remove(&self.begin.container);
        let abort = PeerMessage::Abort { reason: failure.text() };
        let told = self.link.as_mut().is_some_and(|link| link.send(&abort).is_ok());
        tracing::info!(
            reason = failure.reason(),
            message = failure.text(),
            "migration ended; the container runs on here"
        );
        self.publish.update(|status| status.refusals = failure.refusals().to_vec());
        self.publish.end(failure.phase(), failure.reason(), failure.text());
        if !told && !matches!(failure, Failure::Dial(_) | Failure::Refused(_)) {
            // Best effort: a Ready copy asks by itself, any other dies with its connection.
            let answer = peer::ask(
                &self.agent,
                &self.begin.peer,
                &self.begin.peer_address,
                &self.begin,
                &abort,
                peer::ANSWER_TIMEOUT,
            );
            tracing::debug!(told = answer.is_ok(), "told the target by another connection");
        }
    }
}

/// Frames, when they can be read; an unreadable lock costs retransmissions, not the migration.
pub(super) fn held(lock: &mut Option<Box<dyn NetLock>>, wait: Duration) -> Vec<EthernetFrame> {
    let Some(lock) = lock.as_mut() else { return Vec::new() };
    lock.held(wait).unwrap_or_else(|error| {
        tracing::warn!(error = %crate::telemetry::chain(&error), "cannot read held frames");
        Vec::new()
    })
}

pub(super) fn bulk_end(bulk: &mut Option<BulkSender>, index: u32) -> Result<(), Failure> {
    bulk.as_mut().ok_or_else(no_link)?.end(index).map_err(Failure::Bulk)
}

pub(super) fn no_link() -> Failure {
    Failure::Protocol("the connection is not open".to_owned())
}

pub(super) fn no_engine() -> Failure {
    Failure::Protocol("the container is not tracked".to_owned())
}

pub(super) fn unexpected(message: &PeerMessage) -> Failure {
    Failure::Protocol(format!("the target answered {}", message.name()))
}
